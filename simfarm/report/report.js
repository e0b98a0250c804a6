
"use strict";
// Sorting of tables, enlarging of figures, and the example browser. Texts of models enter the page by textContent only.
(() => {
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
        return cell.classList.contains("number") ? null : cell.textContent;
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((first, second) => {
        const a = key(first), b = key(second);
        // what is missing stays last, whichever way is sorted
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      table.tBodies[0].append(...rows);
    }));
  }

  for (const button of document.querySelectorAll("button.zoom")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const large = button.closest("figure").classList.toggle("large");
      button.setAttribute("aria-pressed", String(large));
      button.textContent = large ? "Make smaller" : "Enlarge";
    });
  }

  const data = document.getElementById("data");
  if (!data) return;
  const sets = JSON.parse(data.textContent).sets;
  const [form, set, category, tag, search, list, count, shown] =
    ["browser", "set", "category", "tag", "search", "item", "count", "example"].map((id) => document.getElementById(id));
  if (!sets.length) {
    shown.append(element("p", "", "This run has no examples to show."));
    return;
  }
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  const options = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  }));
  const counted = (values) => {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return [["", "any"], ...[...counts].sort((a, b) => a[0] < b[0] ? -1 : 1).map(([name, n]) => [name, `${name} (${n})`])];
  };
  const items = () => sets[set.value].items;

  const show = () => {
    const item = items()[list.value];
    if (!item) { shown.replaceChildren(); return; }
    const asked = element("div", "asked");
    asked.append(element("h3", "", [item.id, item.category].filter(Boolean).join(" · ") || "Instruction"));
    for (const text of [item.instruction, item.input]) {
      if (!text) continue;
      const part = element("p", "text", text);
      part.dir = "auto";
      asked.append(part);
    }
    const cards = element("div", "cards");
    for (const response of item.responses) {
      const card = element("section", "card");
      const verdicts = element("ul", "verdicts");
      for (const verdict of response.verdicts) verdicts.append(element("li", "", verdict));
      const text = element("p", "text", response.text || "(empty)");
      text.dir = "auto";
      text.tabIndex = 0;
      card.append(element("h3", "", response.name), element("p", "facts", response.facts));
      if (response.verdicts.length) card.append(verdicts);
      card.append(text);
      cards.append(card);
    }
    shown.replaceChildren(asked, cards);
  };

  const filter = () => {
    const words = search.value.toLowerCase();
    const found = items().map((item, index) => [item, index]).filter(([item]) =>
      (!category.value || item.category === category.value)
      && (!tag.value || item.tags.includes(tag.value))
      && (!words || [item.id, item.instruction, item.input, ...item.responses.map((r) => r.text)]
        .some((text) => text.toLowerCase().includes(words))));
    options(list, found.map(([item, index]) =>
      [index, [item.id, item.instruction.replace(/\s+/g, " ").slice(0, 90)].filter(Boolean).join(" · ")]));
    list.selectedIndex = found.length ? 0 : -1;
    count.textContent = `${found.length} match (in this file: ${sets[set.value].note})`;
    show();
  };

  const choose = () => {
    options(category, counted(items().map((item) => item.category).filter(Boolean)));
    options(tag, counted(items().flatMap((item) => item.tags)));
    filter();
  };

  const step = (by) => {
    const next = list.selectedIndex + by;
    if (next < 0 || next >= list.length) return;
    list.selectedIndex = next;
    show();
  };

  options(set, sets.map((entry, index) => [index, entry.name]));
  set.addEventListener("change", choose);
  for (const control of [category, tag]) control.addEventListener("change", filter);
  search.addEventListener("input", filter);
  list.addEventListener("change", show);
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  choose();
})();
