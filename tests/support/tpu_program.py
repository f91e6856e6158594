"""Read what the TPU's compiler estimates from the text of a compiled program.

Each instruction of the program's entry and of its loops has an estimate of its cycles. Fusions are
classified by the source lines that the matrix products in them, or else they themselves, come from.
Cycles leave out collectives, copies that run beside the computation, kernels and the generator.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

KINDS = ("matrix products", "attention", "tables and copies", "optimizer", "the rest")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
# Others have no instruction of their own in the machine program, or their bytes are those of
# another instruction.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "custom-call", "while"}
FREE |= {"copy-start", "slice-start", "partition-id", "after-all", "all-reduce-start"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Array(NamedTuple):
    """An array in the type of an instruction."""

    dtype: str
    size: int
    is_on_chip: bool

    @property
    def bytes(self) -> int:
        return self.size * BYTES.get(self.dtype, 4)


class Instruction(NamedTuple):
    """An instruction of a computation."""

    name: str
    opcode: str
    arrays: list[Array]
    operands: list[str]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    @property
    def cycles(self) -> int:
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


class Collective(NamedTuple):
    """A collective operation of a program, or as many equal ones as it runs."""

    opcode: str
    bytes_by_dtype: dict[str, int]
    is_asynchronous: bool
    runs: int

    @property
    def bytes(self) -> int:
        return self.runs * sum(self.bytes_by_dtype.values())


class TpuProgram:
    """A program as the compiler prints it: `compiled.as_text()`."""

    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        body: list[Instruction] = []
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
            if head:
                body = self._computations.setdefault(head[2], [])
                self._entry = head[2] if head[1] else self._entry
            elif instruction := _instruction(line):
                body.append(instruction)
        self._frames = _Frames(text)

    def run(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yield computation, instruction and how often it runs, in the entry and in loops."""
        stack = [(self._entry, 1)]
        while stack:
            name, count = stack.pop()
            for instruction in self._computations[name]:
                yield name, instruction, count
                if instruction.opcode == "while":
                    inner = str(instruction.attribute(r"body=%([\w.-]+)"))
                    stack.append((inner, count * self._trips(instruction)))
                elif instruction.opcode == "call":
                    stack.append((str(instruction.attribute(r"to_apply=%([\w.-]+)")), count))

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: its condition compares a counter from 0 with a constant."""
        condition = self._computations[str(loop.attribute(r"condition=%([\w.-]+)"))]
        limits = [i.attribute(r" constant\((\d+)\)") for i in condition if i.opcode == "constant"]
        if len(limits) != 1 or limits[0] is None or condition[-1].opcode != "compare":
            raise ValueError(f"how often does the loop {loop.name} run? {condition}")
        return int(limits[0])

    @cached_property
    def cycles(self) -> dict[str, int]:
        """Estimated cycles by kind, see `KINDS`."""
        cycles: dict[str, int] = dict.fromkeys(KINDS, 0)
        for _, instruction, count in self.run():
            if not instruction.opcode.startswith(COLLECTIVES) and instruction.cycles:
                cycles[self._kind(instruction)] += count * instruction.cycles
        return cycles

    @cached_property
    def loops(self) -> int:
        """The number of loops."""
        return sum(instruction.opcode == "while" for _, instruction, _ in self.run())

    @cached_property
    def collectives(self) -> list[Collective]:
        """The collective operations."""
        found = []
        for _, instruction, count in self.run():
            opcode = instruction.opcode
            if not opcode.startswith(COLLECTIVES) or opcode.endswith("-done"):
                continue
            by_dtype: Counter[str] = Counter()
            for array in instruction.arrays:
                by_dtype[array.dtype] += array.bytes
            is_started = opcode.endswith("-start")
            found.append(Collective(opcode, dict(by_dtype), is_started, count))
        return found

    @cached_property
    def hbm_bytes(self) -> int:
        """Bytes that the instructions read from the core's memory (HBM) and write into it.

        On-chip memory is not counted. An array of which a fusion only takes slices or rows counts
        with what it takes.
        """
        total = 0.0
        for name, instruction, count in self.run():
            if instruction.opcode in FREE:
                continue
            by_name = self._by_name(name)
            total += count * sum(a.bytes for a in instruction.arrays if not a.is_on_chip)
            if instruction.opcode in ("copy-done", "slice-done"):
                started = by_name.get(instruction.operands[0])
                source = by_name.get(started.operands[0]) if started else None
                if source and not any(a.is_on_chip for a in source.arrays):
                    total += count * sum(a.bytes for a in instruction.arrays)
                continue
            for number, operand in enumerate(instruction.operands):
                arrays = by_name[operand].arrays if operand in by_name else []
                read = sum(a.bytes for a in arrays if not a.is_on_chip)
                total += count * min(read, self._taken(instruction, number))
        return int(total)

    def copies_of(self, end: str) -> int:
        """How many instructions copy an array as it is, whose shape ends so: `30522,768]`."""
        return sum(
            i.opcode == "copy" and end in i.attributes.split("{")[0]
            for instructions in self._computations.values()
            for i in instructions
        )

    def arrays_of(self, opcode: str) -> list[Array]:
        """The results of all instructions with this opcode, those in fusions included."""
        bodies = self._computations.values()
        return [a for body in bodies for i in body if i.opcode == opcode for a in i.arrays]

    def _by_name(self, computation: str) -> dict[str, Instruction]:
        return {i.name: i for i in self._computations[computation]}

    def _fused(self, instruction: Instruction) -> list[Instruction]:
        inner = instruction.attribute(r"calls=%([\w.-]+)")
        if inner is None:
            return [instruction]
        return [x for i in self._computations[inner] for x in self._fused(i)]

    def _taken(self, instruction: Instruction, operand: int) -> float:
        """Bytes that a fusion takes of an operand, if only by rows or slices; else infinite."""
        inner = instruction.attribute(r"calls=%([\w.-]+)")
        if instruction.opcode in ("gather", "dynamic-slice", "slice") and operand == 0:
            return sum(a.bytes for a in instruction.arrays)
        if inner is None:
            return math.inf
        body = self._computations[inner]
        names = [i.name for i in body if i.attributes.endswith(f"parameter({operand})")]
        users = [i for i in body if names and names[0] in i.operands]
        if users and all(i.opcode in ("gather", "dynamic-slice", "slice") for i in users):
            return sum(a.bytes for i in users for a in i.arrays)
        return math.inf

    def _kind(self, instruction: Instruction) -> str:
        fused = self._fused(instruction)
        products = [i for i in fused if i.opcode in ("convolution", "dot")]
        lines = [self._frames.of(i) for i in products or [instruction]]
        if any(("attention.py", name) in frames for frames in lines for name in ATTENTION):
            return "attention"
        if products:
            return "matrix products"
        functions = {function for i in fused for _, function in self._frames.of(i)}
        if TRAIN_STEP in functions and not any(name.startswith(MODEL) for name in functions):
            return "optimizer"
        moves = {"copy", "transpose", "gather", "scatter", "dynamic-slice", "dynamic-update-slice"}
        is_table = any(f[1].startswith("Embeddings.") for frames in lines for f in frames)
        opcodes = {i.opcode for i in fused}
        if opcodes & {"gather", "scatter"} or (is_table and "_take" in instruction.attributes):
            return "tables and copies"
        return "tables and copies" if opcodes <= moves | FREE else "the rest"


ATTENTION = ("attention", "_by_heads", "_by_heads.<locals>.mix")
MODEL = ("make_loss.<locals>.loss", "make_eval_step.<locals>")
TRAIN_STEP = "make_train_step.<locals>.train_step"


class _Frames:
    """The source lines of instructions, from the tables at the beginning of a program."""

    def __init__(self, text: str):
        names = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.M))
        functions = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FunctionNames"), re.M))
        pattern = r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)"
        places = {
            number: (names.get(file, "").rsplit("/", 1)[-1], functions.get(function, ""))
            for number, file, function in re.findall(pattern, _table(text, "FileLocations"), re.M)
        }
        pattern = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        self._frames = {
            int(number): (places.get(place, ("", "")), int(parent or 0) - 1)
            for number, place, parent in re.findall(pattern, _table(text, "StackFrames"), re.M)
        }

    def of(self, instruction: Instruction) -> set[tuple[str, str]]:
        """File and function of each line in the instruction's stack."""
        number, found = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0), set()
        while number in self._frames:
            place, parent = self._frames[number]
            found.add(place)
            number = parent if parent < number else 0
        return found


def _table(text: str, name: str) -> str:
    match = re.search(rf"^{name}\n(.*?)\n\n", text, re.M | re.S)
    return match[1] if match else ""


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*)$", line)
    if not match:
        return None
    name, rest = match.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    type_, call = rest[:end], rest[end:].strip()
    opcode, _, inside = call.partition("(")
    stop = _closing("(" + inside) - 1
    operands = re.findall(r"%([\w.-]+)", inside[:stop])
    arrays = [
        Array(dtype, math.prod(int(n) for n in dims.split(",") if n), "S(" in (layout or ""))
        for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", type_)
    ]
    return Instruction(name, opcode, arrays, operands, rest)


def _closing(text: str) -> int:
    """The place of the bracket that closes the first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")
