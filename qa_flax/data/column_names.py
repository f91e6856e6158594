"""Stage 1 of 7: the names that people give to columns -> the names of the package (host, text)."""

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qa_flax.data.rejected import ExampleError
from qa_flax.messages import quoted

Row = dict[str, Any]

CANONICAL = (
    "id",
    "title",
    "context",
    "question",
    "answers",
    "answer_text",
    "answer_start",
    "is_impossible",
)
"""The columns that are read."""
CHOSEN = ("question", "context", "answers", "id")
"""The columns whose names the user can give, with `question_column=` and so on."""
TEXTS = ("question", "context")
"""The columns that a row needs to be asked, and to be trained on."""

_OTHER_NAMES = {
    "answer": "answers",
    "answers_text": "answer_text",
    "answers_answer_start": "answer_start",
    "answers_start": "answer_start",
    "answer_answer_start": "answer_start",
    "answer_texts": "answer_text",
    "answer_starts": "answer_start",
    "impossible": "is_impossible",
}


def argument(column: str) -> str:
    """Return the argument of `load_examples` that names a column, such as `answer_column`."""
    return f"{'answer' if column == 'answers' else column}_column"


@functools.lru_cache(maxsize=1 << 12)
def canonical_name(name: object) -> str | None:
    """Return the package's name of a column, whatever its case and separators; None: not used.

    `Answer Start`, `answerStart`, `answers.answer_start` and `ANSWER-START` are `answer_start`.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name).strip("\ufeff \t\r\n\"'"))
    key = re.sub(r"[\s_\-./:]+", "_", words.lower()).strip("_")
    return key if key in CANONICAL else _OTHER_NAMES.get(key)


class ColumnNames:
    """Renames the columns of a source.

    Args:
        source: what messages call the source.
        chosen: the source's own names of some of `CHOSEN`, by these.
        optional: those of `chosen` that the source need not have.
        has_fallback: whether such a column may have a known name instead.
        needs: those of `TEXTS` without which a source is refused.
    """

    def __init__(
        self,
        source: str,
        chosen: Mapping[str, str | None] | None = None,
        *,
        optional: Collection[str] = (),
        needs: Collection[str] = TEXTS,
        has_fallback: bool = False,
    ):
        self._optional, self._has_fallback = optional, has_fallback
        self.source, self.needs = source, frozenset(needs)
        self.chosen = {key: name for key, name in (chosen or {}).items() if name is not None}
        self._by_keys: dict[tuple[Any, ...], dict[Any, str]] = {}
        self._kinds: dict[tuple[Any, ...], frozenset[str]] = {}
        for column, name in self.chosen.items():
            if not isinstance(name, str) or not name.strip():
                raise ExampleError(f"{argument(column)} must be the name of a column, got {name!r}")
        for column, name in self.chosen.items():
            other = next(key for key, value in self.chosen.items() if value == name)
            if other != column:
                raise ExampleError(
                    f"{argument(other)} and {argument(column)} both name the column {name!r}; each "
                    "needs a column of its own."
                )

    def canonical(self, name: Any) -> str | None:
        """Return the package's name of one column; None: it is not read."""
        for column, chosen in self.chosen.items():
            if self._is_chosen(chosen, name):
                return column
        return canonical_name(name)

    def kinds(self, names: Iterable[Any]) -> frozenset[str]:
        """Return the package's names of all columns that are read."""
        names = tuple(names)
        if names not in self._kinds:
            found = {self.canonical(name) for name in names}
            self._kinds[names] = frozenset(column for column in found if column is not None)
        return self._kinds[names]

    def check(self, found: Iterable[Any]) -> None:
        """Refuse chosen names that the source does not have.

        Raises:
            ExampleError: names the columns that were found, and the most similar one.
        """
        names = [str(name) for name in found]
        for column, chosen in self.chosen.items():
            is_missing = not any(self._is_chosen(chosen, name) for name in names)
            if is_missing and column not in self._optional:
                similar = difflib.get_close_matches(chosen, names, n=1)
                hint = f" Did you mean {similar[0]!r}?" if similar else ""
                raise ExampleError(
                    f"{self.source}: there is no column {chosen!r}, which {argument(column)} "
                    f"names. Columns found: {', '.join(names) or 'none'}.{hint}"
                )

    def mapping(self, names: Iterable[Any]) -> dict[Any, str]:
        """Return the package's names of those columns that are read, by the source's.

        Raises:
            ExampleError: two columns have names that mean the same.
        """
        names = tuple(names)
        if names not in self._by_keys:
            self._by_keys[names] = self._mapping(names)
        return self._by_keys[names]

    def _is_chosen(self, chosen: str, name: object) -> bool:
        return str(name) == chosen or str(name).strip() == chosen.strip()

    def _mapping(self, names: tuple[Any, ...]) -> dict[Any, str]:
        used: dict[str, Any] = {}
        for column, chosen in self.chosen.items():
            matches = [name for name in names if self._is_chosen(chosen, name)]
            exact = [name for name in matches if str(name) == chosen] or matches
            if len(exact) > 1:
                raise self._twice(column, exact)
            if exact:
                used[column] = exact[0]
        taken = set(used.values())
        # An answer column replaces every other column with answers but that of its start.
        chosen = {c for c in self.chosen if c in used or not self._has_fallback}
        replaced = chosen | ({"answer_text"} if "answers" in chosen else set())
        candidates: dict[str, list[Any]] = {}
        for name in names:
            column = canonical_name(name)
            if column is not None and name not in taken and column not in replaced:
                candidates.setdefault(column, []).append(name)
        for column, same in candidates.items():
            exact = [name for name in same if name == column]
            is_first = len(exact) == 1 and (column == "title" or _are_answer(same, column))
            if len(same) > 1 and not is_first:
                raise self._twice(column, same)
            used[column] = (exact or same)[0]
        return {name: column for column, name in used.items()}

    def _twice(self, column: str, names: list[Any]) -> ExampleError:
        listed = ", ".join(quoted(name) for name in names)
        if len(set(names)) < len(names):
            return ExampleError(
                f"{self.source}: the column {quoted(names[0])} occurs {len(names)} times; rename "
                "or remove all but one."
            )
        hint = f"; {argument(column)} says which one to use" if column in CHOSEN else ""
        return ExampleError(
            f"{self.source}: the columns {listed} all mean {column}{hint}; rename or remove the "
            "others."
        )

    def rename(self, rows: list[Row]) -> list[Row]:
        """Rename the keys of rows; a key that another one replaces is left out.

        Raises:
            ExampleError: a chosen name is missing, or two keys of a row mean the same.
        """
        if self.chosen and rows:
            self.check(dict.fromkeys(key for row in rows for key in row))
        return [self._renamed(row) for row in rows]

    def _renamed(self, row: Row) -> Row:
        mapping = self.mapping(row)
        if all(mapping.get(key, key) == key for key in row) and not self.chosen:
            return row if isinstance(row, dict) else dict(row)
        return {
            mapping.get(key, key): value
            for key, value in row.items()
            if key in mapping or (key not in CANONICAL and canonical_name(key) is None)
        }


def _are_answer(names: list[Any], column: str) -> bool:
    """Whether all columns but `answers` are called `answer`, whose value it has, too."""
    return all(name == column or str(name).strip().lower() == "answer" for name in names)


def require(source: str, rows: list[Row], hint: str = "", needs: Collection[str] = TEXTS) -> None:
    """Refuse rows of which none has a question, or none a context.

    Args:
        source: what messages call the source.
        rows: renamed rows.
        hint: the next step, if it is not to name the columns.
        needs: those of `TEXTS` that are required.

    Raises:
        ExampleError: names the columns that were found.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in TEXTS if column in needs and column not in columns]
    if not missing:
        return
    arguments = " and ".join(f'{argument(column)}="..."' for column in missing)
    raise ExampleError(
        f"{source}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
        f"Columns found: {', '.join(map(str, columns)) or 'none'}. "
        f"{hint or f'A column of another name is given with {arguments}.'}"
    )
