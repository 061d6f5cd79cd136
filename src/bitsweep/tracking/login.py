"""Which W&B server, and whether one is logged in there: as W&B looks, without asking it."""

from __future__ import annotations

import configparser
import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlparse

Mode = Literal["online", "offline", "disabled"]
CLOUD = "https://api.wandb.ai"
CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""One service under two names."""


def base_url() -> str:
    """The server: ``WANDB_BASE_URL``, the one that ``wandb login --host`` kept, or W&B's own."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    kept = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, UnicodeDecodeError, configparser.Error):
        kept.read(folder / "settings", encoding="utf-8")
    own = kept.get("default", "base_url", fallback=CLOUD)
    return os.environ.get("WANDB_BASE_URL") or own


def logged_in() -> bool:
    """Whether W&B would find credentials, without asking it or the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(base_url()).netloc.rpartition("@")[2]
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        known = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(name in known for name in (CLOUD_HOSTS if host in CLOUD_HOSTS else (host,)))


def resolve(asked: Mode | Literal["auto"]) -> Mode:
    """``asked``, or for ``auto`` what ``WANDB_MODE`` says, or whether there is a login."""
    said = asked if asked != "auto" else os.environ.get("WANDB_MODE", "")
    said = {"dryrun": "offline", "run": "online"}.get(said, said)
    if said in ("online", "offline", "disabled"):
        return cast(Mode, said)
    return "online" if logged_in() else "offline"
