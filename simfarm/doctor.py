"""What this machine has of what simfarm can use: packages, devices, keys, models, a server; and how fast it is.

Nothing is changed and nothing fetched. The values of keys are never read out: only whether they are set.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from simfarm import models
from simfarm.errors import ConfigError, ModelError
from simfarm.resources import cache_dir

State = Literal["ok", "absent", "bad"]
KEYS = ("OPENAI_API_KEY", "HF_TOKEN")
"""What simfarm reads keys from, besides the variables that pools name by `api_key_env`."""
NEEDED_MB = 1500
"""Room in the cache that fetching the built-in model and a run of quickstart take."""
REFERENCE_WORK = 2.4
"""Seconds of `work` on the machine on which `QUICKSTART` was taken (two cores, AVX-512 with bfloat16)."""
QUICKSTART = 842.0
"""Seconds that `simfarm run quickstart` took there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    group: str
    name: str
    state: State
    """"absent" is not wrong: something optional is not there. "bad" needs mending."""
    found: str
    mend: str = ""
    """What to do, where something is missing or wrong."""


def examine(
    *, base_url: str | None = None, speed: bool = True, timeout: float = 5.0, report: models.Report = lambda line: None
) -> list[Finding]:
    """Look at the machine.

    Args:
        base_url: A server to ask whether it is alive; OPENAI_BASE_URL if None.
        speed: Time a small fixed piece of work, to estimate what quickstart takes (some seconds).
        timeout: Seconds for the server to answer.
        report: Called with a line where something takes time.

    Returns:
        Findings in groups: packages, devices, keys, models, server, speed.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    found = [*packages(), *devices(), *keys(os.environ), *stored_models(report)]
    if url:
        found.append(asyncio.run(server(url, os.environ.get("OPENAI_API_KEY", ""), timeout)))
    else:
        hint = "give --base-url URL, or set OPENAI_BASE_URL, to ask a server of your own"
        found.append(Finding("server", "base URL", "absent", "none given", hint))
    if speed:
        report("timing a small model …")
        found.append(speed_of_machine())
    return found


def packages() -> Iterator[Finding]:
    """Look at Python, and at what simfarm and its extras need."""
    from packaging.requirements import Requirement

    where = f"{platform.system()} {platform.machine()}"
    yield Finding("packages", "Python", "ok", f"{platform.python_version()} on {where}, {sys.executable}")
    yield Finding("packages", "simfarm", "ok", f"{importlib.metadata.version('simfarm')} in {Path(__file__).parent}")
    known = [Requirement(text) for text in importlib.metadata.requires("simfarm") or []]
    extras = importlib.metadata.metadata("simfarm").get_all("Provides-Extra") or []
    for extra in ["", *(extra for extra in extras if extra != "dev")]:
        needed = [r for r in known if _belongs(r, extra)]
        versions = {r.name: _version(r.name) for r in needed}
        wrong = [str(r.name) for r in needed if not _fits(r, versions[r.name])]
        have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        lacking = ", ".join(f"{name} ({versions[name] or 'not installed'})" for name in wrong)
        target = f"simfarm[{extra}]" if extra else "simfarm"
        state: State = "ok" if not wrong else "absent" if extra and not have else "bad"
        found = have if not wrong else f"lacking or of another version: {lacking}"
        yield Finding("packages", extra or "core", state, found, f"pip install '{target}'" if wrong else "")


def _belongs(requirement: Any, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return not extra
    # a requirement of an extra holds with it and not without
    return bool(extra) and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(requirement: Any, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def devices() -> Iterator[Finding]:
    """Look at processors, memory, accelerators, and the room in the cache."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    yield Finding("devices", "processor", "ok", f"{cores} cores{memory}")
    if _version("torch") is not None:
        yield _accelerator()
    folder = cache_dir()
    standing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(standing).free / 1e6
    writable = os.access(standing, os.W_OK)
    state: State = "ok" if writable and free > NEEDED_MB else "bad"
    mend = "" if state == "ok" else f"set SIMFARM_CACHE to a folder that can be written and has {NEEDED_MB:,} MB"
    note = "" if writable else ", not writable"
    yield Finding("devices", "cache", state, f"{folder}, {free / 1000:,.0f} GB free{note}", mend)


def _accelerator() -> Finding:
    import torch

    from simfarm.policies.transformers import best_device, best_dtype

    device = best_device()
    kind = str(best_dtype(device)).removeprefix("torch.")
    if device.type == "cuda":
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = "; ".join(f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards)
        return Finding("devices", "accelerator", "ok", f"{names}; models compute in {kind}")
    if device.type == "mps":
        return Finding("devices", "accelerator", "ok", f"Apple's (mps); models compute in {kind}")
    return Finding("devices", "accelerator", "absent", f"none; models compute in {kind} on the processor")


def keys(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Say which keys are set; never what they are."""
    from simfarm.annotators.pool_config import pool_folder, pool_names, read_config

    named = {
        spec.api_key_env
        for name in pool_names()
        for spec in read_config(pool_folder(name)).models.values()
        if spec.api_key_env
    }
    for key in [*KEYS, *sorted(named - set(KEYS))]:
        if environment.get(key, "").strip():
            yield Finding("keys", key, "ok", "set")
        else:
            yield Finding("keys", key, "absent", "not set", "only pools and models on other servers need it")


def stored_models(report: models.Report) -> Iterator[Finding]:
    """Look at the built-in models, and name what the Hugging Face cache holds."""
    for model in models.BUILTIN.values():
        if not models.is_stored(model.name):
            mend = f"simfarm models pull {model.name} ({model.download_mb} MB); a run fetches it by itself"
            yield Finding("models", model.name, "absent", "not fetched", mend)
            continue
        report(f"checking {model.name} against its hashes …")
        try:
            models.verify(model.name)
        except ModelError as error:
            yield Finding("models", model.name, "bad", str(error), f"simfarm models pull {model.name} --force")
        else:
            yield Finding("models", model.name, "ok", f"whole, in {models.stored_at(model)}")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", str(home / "hub"))).expanduser()
    held = sorted(p.name.removeprefix("models--").replace("--", "/") for p in hub.glob("models--*"))
    found = ", ".join(f"hf/{name}" for name in held) if held else f"none in {hub}"
    yield Finding("models", "from the hub", "ok" if held else "absent", found)


async def server(url: str, key: str, timeout: float) -> Finding:
    """Ask an OpenAI-compatible server for its models.

    Args:
        url: Its base URL, such as http://localhost:8000/v1.
        key: Sent as bearer token, if not empty; redirects, which would carry it elsewhere, are not followed.
        timeout: Seconds to answer in.
    """
    import aiohttp

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"The base URL {url!r} is not one; write http://HOST:PORT/v1 or https://HOST/v1.")
    # user and password may stand in a URL; they are not shown
    shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    start = time.perf_counter()
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout), trust_env=True, headers=headers)
    try:
        async with session, session.get(f"{url.rstrip('/')}/models", allow_redirects=False) as answer:
            status, body = answer.status, await answer.json(content_type=None) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        words = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        mend = "start the server (simfarm serve MODEL), or mend the URL"
        return Finding("server", shown, "bad", f"does not answer ({words})", mend)
    took = 1000 * (time.perf_counter() - start)
    if status in (401, 403):
        return Finding("server", shown, "bad", f"alive, but refuses the key ({status})", "set OPENAI_API_KEY")
    if status != 200:
        mend = "the URL usually ends in /v1"
        return Finding("server", shown, "bad", f"alive, but has no list of models ({status})", mend)
    rows = body.get("data", []) if isinstance(body, dict) else []
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    held = f"serves {', '.join(names[:3])}{more}" if names else "names no model"
    return Finding("server", shown, "ok", f"alive ({took:.0f} ms), {held}")


def speed_of_machine() -> Finding:
    """Time `work`, and say from that how long quickstart would take.

    The estimate is QUICKSTART x seconds of `work` here / REFERENCE_WORK, from a third less to a half more: quickstart
    samples and trains a model of the same shape, in other proportions, and other programs run beside it.
    """
    if _version("torch") is None or _version("transformers") is None:
        return Finding("speed", "quickstart", "absent", "not measured", "pip install 'simfarm[local]'")
    seconds, device = timed(work())
    text = f"a small fixed piece of work takes {seconds:.1f} s"
    if device != "cpu":
        return Finding("speed", "quickstart", "ok", f"{text} on {device}; quickstart has been timed on processors only")
    low, high = (QUICKSTART * seconds / REFERENCE_WORK * factor / 60 for factor in (2 / 3, 3 / 2))
    return Finding("speed", "quickstart", "ok", f"{text}; quickstart would take about {low:.0f} to {high:.0f} minutes")


def timed(task: tuple[Callable[[], None], str]) -> tuple[float, str]:
    """Run a task twice and return the seconds of the faster one, and the device."""
    run, device = task
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), device


def work() -> tuple[Callable[[], None], str]:
    """Return a piece of work and its device: a model shaped like SmolLM2-135M, with random weights, reads and answers.

    64 rows of 64 tokens are read, then eight tokens are decoded for each, as in sampling.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from simfarm.policies.transformers import best_device, best_dtype

    device = best_device()
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(best_dtype(device)).eval()
    tokens = torch.arange(64 * 64, device=device).reshape(64, 64)

    def run() -> None:
        with torch.no_grad():
            held = model(tokens, use_cache=True, logits_to_keep=1)
            for _ in range(8):
                chosen = held.logits[:, -1].argmax(-1, keepdim=True)
                held = model(chosen, past_key_values=held.past_key_values, use_cache=True)
            # a device that works by itself has done its work when a number is read
            held.logits.sum().item()

    return run, device.type
