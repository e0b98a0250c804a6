from pathlib import Path

import pytest
from hypothesis import settings

# a test's time says nothing about what it tests, and on a shared machine it varies
settings.register_profile("simfarm", deadline=None)
settings.load_profile("simfarm")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of validation data beside the repository; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the validation data in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_model() -> str:
    """The built-in language model; tests that need it skip where it is not in the cache."""
    from simfarm import models

    name = "smollm2-135m"
    if not models.is_stored(name):
        pytest.skip(f"needs the built-in model: simfarm models pull {name}")
    return name
