"""How fast a file comes, beside curl: python -m benchmarks.download [MIB] [FOLDER]. Both fetch it from the stand-in.

The server is a process of its own on loopback; curl writes the file and checks nothing, ours writes the same file and
holds it against its sha256. FOLDER is where both write, by default /dev/shm, which is memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.common.paths import ROOT

ROUNDS = 5
MIB = 1 << 20
SERVER = """
import sys
from pathlib import Path
from tests.support.hub_standin import HubStandin
with HubStandin(Path(sys.argv[1])) as hub:
    print(hub.url, flush=True)
    sys.stdin.read()
"""
OURS = """
import json, resource, sys, time
from pathlib import Path
from core.hub.metadata import Repository, open_client
from core.hub.address import Address
from core.hub.file_download import FileDownload
from core.hub.folders import ModelFolders
from core.hub.progress import FileProgress, Speed
from core.hub.retry import TransferLimits
from core.hub.source import RemoteFile
from core.hub.cancellation import CancelToken
from core.hub.transport import Transport
url, path, size, sha256, folder = sys.argv[1:]
folders = ModelFolders(Path(folder), "benchmark")
folders.unfinished.mkdir()
file = RemoteFile("model.safetensors", int(size), sha256, None, path)
limits = TransferLimits()
with open_client(None) as client:
    transport = Transport(Repository(client, url, Address("a/b", "main")), url, None, limits)
    fetcher = FileDownload(folders, transport, limits, CancelToken(), Speed())
    begin = time.perf_counter()
    fetcher.fetch(file, FileProgress(file.name, file.size_bytes))
    seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def main(arguments: list[str]) -> int:
    num_mib = int(arguments[0]) if arguments else 1024
    base = Path(arguments[1] if len(arguments) > 1 else "/dev/shm")
    with tempfile.TemporaryDirectory(dir=base) as folder:
        measure(Path(folder), num_mib)
    return 0


def measure(folder: Path, num_mib: int) -> None:
    served = folder / "hub" / "a" / "b" / "main" / "model.safetensors"
    served.parent.mkdir(parents=True)
    sha256 = write_random(served, num_mib)
    command = [sys.executable, "-c", SERVER, str(folder / "hub")]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    assert server.stdin is not None and server.stdout is not None
    url, path = server.stdout.readline().strip(), "/a/b/resolve/main/model.safetensors"
    curl: list[float] = []
    ours: list[float] = []
    rss_kib = 0.0
    try:
        for _ in range(ROUNDS):
            curl.append(time_curl(url + path, folder / "curl.bin"))
            found = run_ours(url, path, num_mib * MIB, sha256, folder / "ours")
            ours.append(found["seconds"])
            rss_kib = max(rss_kib, found["rss_kib"])
    finally:
        server.stdin.close()
        server.wait()
    for name, seconds in (("curl, no checksum", curl), ("LlamaDeck, with sha256", ours)):
        print(f"{name:24}{num_mib / sorted(seconds)[ROUNDS // 2]:8.0f} MiB/s (median of {ROUNDS})")
    ratios = sorted(a / b for a, b in zip(curl, ours, strict=True))
    print(f"{'ratio':24}{ratios[ROUNDS // 2]:8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"{'peak memory':24}{rss_kib / 1024:8.0f} MiB")


def write_random(path: Path, num_mib: int) -> str:
    """Random bytes; returns their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(num_mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def time_curl(url: str, target: Path) -> float:
    """Seconds, with the start of the process, which takes some milliseconds."""
    begin = time.perf_counter()
    subprocess.run(["curl", "--silent", "--fail", "--noproxy", "*", "-o", str(target), url], check=True)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def run_ours(url: str, path: str, size: int, sha256: str, folder: Path) -> dict[str, float]:
    folder.mkdir()
    command = [sys.executable, "-c", OURS, url, path, str(size), sha256, str(folder)]
    environment = os.environ | {"no_proxy": "*"}
    found = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, encoding="utf-8")
    shutil.rmtree(folder)
    return dict(json.loads(found.stdout))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
