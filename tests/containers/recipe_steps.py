"""Read the two container recipes as the same list of steps, and run it in a directory tree of Debian."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "slurm" / "containers" / "Dockerfile"
DEFINITION = ROOT / "slurm" / "containers" / "simcast.def"
_PIP_FOLDERS = ("find-links", "index-url", "extra-index-url")


class Recipe(NamedTuple):
    """What a recipe does.

    Attributes:
        base: name of the base image.
        arguments: build arguments with their defaults.
        copies: files and folders of the checkout with their places in the image.
        commands: shell commands, with the folder in which they run; ``$NAME`` is a build argument.
        environment: variables of a running container.
    """

    base: str
    arguments: dict[str, str]
    copies: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    environment: dict[str, str]


def read_dockerfile(path: Path = DOCKERFILE) -> Recipe:
    """Read a Dockerfile of one stage, with one command per ``RUN``."""
    recipe, folder = Recipe("", {}, [], [], {}), "/"
    for line in path.read_text(encoding="utf-8").splitlines():
        instruction, _, rest = line.partition(" ")
        match instruction:
            case "FROM":
                recipe = recipe._replace(base=rest)
            case "ARG":
                recipe.arguments.update([rest.split("=", 1)])
            case "COPY":
                *sources, into = rest.split()
                recipe.copies.extend((source, into) for source in sources)
            case "WORKDIR":
                folder = rest
            case "RUN":
                recipe.commands.append((folder, rest))
            case "ENV":
                recipe.environment.update([rest.split("=", 1)])
            case "" | "#" | "CMD":
                pass
            case _:
                raise AssertionError(f"{path.name}: {line}")
    return recipe


def read_definition(path: Path = DEFINITION) -> Recipe:
    """Read an Apptainer definition with one command per line of ``%post``."""
    recipe, section, folder = Recipe("", {}, [], [], {}), "", "/"
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("%"):
            section = text
        elif text.startswith("From: "):
            recipe = recipe._replace(base=text.removeprefix("From: "))
        elif not text or text.startswith("#"):
            continue
        elif section == "%arguments":
            recipe.arguments.update([text.split("=", 1)])
        elif section == "%files":
            source, into = text.split()
            recipe.copies.append((source, into))
        elif section == "%post" and text.startswith("cd "):
            folder = text.removeprefix("cd ")
        elif section == "%post":
            recipe.commands.append((folder, re.sub(r"\{\{ (\w+) \}\}", r"$\1", text)))
        elif section == "%environment":
            recipe.environment.update([text.removeprefix("export ").split("=", 1)])
    return recipe


def run_recipe(recipe: Recipe, root: Path, *, arguments: Mapping[str, str], checks: list[str]) -> None:
    """Copy the files of a recipe into ``root``, run its commands there, then ``checks`` in the final environment.

    Local folders in the configuration of pip are visible at the same paths, so that pip installs from the same
    sources as outside. Mounts exist only in a namespace of the process.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    # 1. Files: those that git tracks, as in a clean checkout
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in tracked.split("\0") if name and (ROOT / name).is_file()]
    for source, into in recipe.copies:
        for name in files:
            if name == source or name.startswith(f"{source}/"):
                target = (
                    root / into.strip("/") / (Path(name).name if name == source else name.removeprefix(f"{source}/"))
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
    # 2. Commands
    lines = ["set -eu", *(f"export {name}={shlex.quote(value)}" for name, value in arguments.items())]
    for folder, command in recipe.commands:
        lines += [f"mkdir -p {folder} && cd {folder}", f"echo '+' {shlex.quote(command)}", command]
    lines += [f"export {name}={value}" for name, value in recipe.environment.items()]
    for command in checks:
        lines += [f"echo '+' {shlex.quote(command)}", command]
    (root / "steps.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # 3. The same network and sources of packages as outside
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    environment = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    for folder in _pip_folders():
        inside = root / str(folder).strip("/")
        mounts += [f"mkdir -p {inside}", f"mount --bind -o ro {folder} {inside}"]
    if Path("/etc/pip.conf").is_file():
        shutil.copy("/etc/pip.conf", root / "etc" / "pip.conf")
    certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    if Path(certificates).is_file():  # a network may have its own; the package ca-certificates replaces its own file
        shutil.copy(certificates, root / "etc" / "certificates-of-pip.crt")
        environment["PIP_CERT"] = "/etc/certificates-of-pip.crt"
    script = "\n".join(["set -eu", *mounts, f"exec chroot {root} /bin/sh /steps.sh"])
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private"]
    subprocess.run([*namespaces, "sh", "-c", script], env=environment, check=True)


def _pip_folders() -> list[Path]:
    """Return the local folders in the configuration of pip."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values = [line.split("=", 1)[1] for line in listing.splitlines() if line.split("=")[0].endswith(_PIP_FOLDERS)]
    words = [word for value in values for word in value.strip("'\"").replace("\\n", " ").split()]
    paths = {Path(urlparse(word).path) for word in words if urlparse(word).scheme in ("", "file")}
    return sorted(path for path in paths if path.is_dir())
