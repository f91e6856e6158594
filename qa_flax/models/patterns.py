"""Stage 4 of 7: regular expressions that come with a model, matched within a limit of time (host).

An expression such as `(.*)*!` takes Python's `re` longer than anybody waits, `(?:x{9999}){9999}`
more memory than a machine has, and nothing in the process can interrupt it. A process of its own
can be stopped.
"""

import functools
import json
import subprocess
import sys

SECONDS = 5.0
"""How long all the matches of an expression may take; an ordinary one takes milliseconds."""

MAX_MEMORY = 2**30  # bytes
MAX_SHOWN = 100  # characters of an expression that a message shows

_PROGRAM = """
import json, re, sys
pattern, names, memory = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, OSError, ValueError):
    pass
try:
    compiled = re.compile(pattern)
    result = [name for name in names if compiled.fullmatch(name)]
except (re.error, RecursionError, OverflowError) as error:
    result = str(error)
json.dump(result, sys.stdout)
"""


@functools.lru_cache(64)
def matching(pattern: str, names: tuple[str, ...]) -> frozenset[str]:
    """Return those of `names` that a regular expression matches in full, as `re.fullmatch` does.

    Raises:
        ValueError: it is no regular expression, or takes too much time or memory. The message
            begins with the expression.
        OSError: Python cannot be started for it.

    Example:
        >>> sorted(matching(r".*\\.(query|value)", ("layer.0.query", "layer.0.key")))
        ['layer.0.query']
    """
    shown = repr(pattern if len(pattern) <= MAX_SHOWN else f"{pattern[:MAX_SHOWN]}...")
    advice = "give a simpler one, or a list of names"
    if not sys.executable:
        raise ValueError(
            f"{shown}: a regular expression needs the Python interpreter, whose place is unknown "
            "(sys.executable is empty); give a list of names"
        )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([pattern, names, MAX_MEMORY]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{shown}: this regular expression takes more than {SECONDS:g} s; {advice}"
        ) from None
    if done.returncode:
        raise ValueError(f"{shown}: this regular expression takes too much memory; {advice}")
    result = json.loads(done.stdout)
    if isinstance(result, str):
        raise ValueError(f"{shown} is not a regular expression: {result}; {advice}")
    return frozenset(result)
