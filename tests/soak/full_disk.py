"""Let the disk become full at random moments of a run, and look at what is left.

    python tests/soak/full_disk.py --series 30 --minutes 15 --seed 0

Each series trains a tiny model to its end in a folder that takes a random number of bytes. Where
this process may mount (root on Linux), that is a tmpfs of that size, which is full for all files
together. Elsewhere it is the largest size of one file (`RLIMIT_FSIZE`), which is an error of
another number (EFBIG) at the same places; `--how` chooses.

Either there was room, or the run must end with status 1, no traceback and its last line as the
message. Then every checkpoint in the folder must be complete, and no temporary file be left; given
room, the same command must resume and leave the results of an uninterrupted run.

One line per series, then a summary; the status is 1 if a series failed. pytest does not collect
this file.
"""

import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import soak_run
from soak_run import Run

from qa_flax.messages import first_few
from qa_flax.train import checkpoints


class Space(NamedTuple):
    """A folder in which a run finds less room than it needs."""

    folder: Path
    size: int  # bytes
    is_mounted: bool

    def open(self) -> None:
        """Make the folder, with its limit if it is a mounted one."""
        self.folder.mkdir()
        if self.is_mounted:
            self._mount("-t", "tmpfs", "-o", f"size={self.size}", "tmpfs")

    def limit(self, pid: int) -> None:
        """Limit the files of a process."""
        if not self.is_mounted:
            limits = self.size, resource.RLIM_INFINITY
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    def make_room(self) -> None:
        """Let the folder take as much as anybody wants."""
        if self.is_mounted:
            self._mount("-o", "remount,size=1G")

    def close(self) -> None:
        """Delete everything."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)
        shutil.rmtree(self.folder)

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, self.folder], check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    space = Space(folder / "probe", 1 << 16, is_mounted=True)
    try:
        space.open()
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(space.folder)
        return False
    space.close()
    return True


def incomplete(output: Path) -> list[str]:
    """The checkpoints in the folder that the package itself does not resume from, and why."""
    problems = []
    for path in soak_run.checkpoints_in(output):
        try:
            checkpoints.find(str(path), output)
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return problems


def series(folder: Path, space: Space, expected: dict[str, str]) -> str:
    """Run without enough room and then with it; in words. `AssertionError`: what went wrong."""
    output = space.folder / "out"
    first = Run(folder, output, limit=space.limit)
    (status,) = first.wait()
    text = first.text().rstrip()
    last_line = text.rpartition("\n")[2]
    if status == 0:
        what = "there was room"
    else:
        if status != 1 or "Traceback" in text:
            raise AssertionError(f"status {status}: {text[-600:]}")
        what = f"one line: {last_line.replace(str(space.folder), '...')[:160]}"
    for problem, found in (
        ("incomplete", incomplete(output)),
        ("temporary files", soak_run.temporary_files(output)),
    ):
        if found:
            raise AssertionError(f"{problem}: {', '.join(found)} ({last_line[-300:]})")
    if status:
        kept = len(soak_run.checkpoints_in(output))
        space.make_room()
        again = Run(folder, output)
        if any(again.wait()):
            raise AssertionError(f"with room it did not resume: {again.text()[-600:]}")
        what += f"; {kept} checkpoints kept, resumed"
    if different := soak_run.differences(expected, soak_run.fingerprint(output)):
        raise AssertionError(f"not the same: {first_few(different)}")
    return what


def size_of(path: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Run the series until their number or the time is reached."""
    options = soak_run.parser(__doc__, series=30)
    options.add_argument("--how", choices=["tmpfs", "rlimit"], help="default: tmpfs, if permitted")
    options = options.parse_args()
    rng, until = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    done = full = failed = 0
    with tempfile.TemporaryDirectory(prefix="qa_flax-soak-") as name:
        folder = Path(name)
        soak_run.prepare(folder)
        is_mounted = options.how == "tmpfs" or (options.how is None and may_mount(folder))
        whole = Run(folder, folder / "whole")
        if any(whole.wait()):
            sys.exit(f"the uninterrupted run failed: {whole.text()[-2000:]}")
        expected = soak_run.fingerprint(folder / "whole")
        largest = max(file.stat().st_size for file in (folder / "whole").rglob("*"))
        most = round(1.5 * size_of(folder / "whole")) if is_mounted else largest
        print(
            f"{'tmpfs of' if is_mounted else 'files of at most'} 4096 to {most} bytes", flush=True
        )
        while done < options.series and time.monotonic() < until:
            space = Space(folder / f"space-{done}", rng.randint(4096, most), is_mounted)
            space.open()
            try:
                what = series(folder, space, expected)
                full += what.startswith("one line")
                print(f"series {done}, {space.size} bytes: {what}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"series {done}, {space.size} bytes: FAILED: {error}", flush=True)
            finally:
                space.close()
            done += 1
    print(f"{done - failed} of {done} series right ({full} ran out of room)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
