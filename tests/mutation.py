"""Mutation testing, by hand (`make mutation`): does a test fall for every small change to the code that makes numbers?

Mutants are mutmut's, made of whole modules so that properties, constants and decorated functions have some too. Each
runs in a process of its own, forked after everything but the package is imported, which is what makes it quick.
Survivors that change nothing are explained in `mutation_equivalents.toml`, by function and mutated line, and by
what stood there (`was`) where the line alone says too little.

    python tests/mutation.py [--jobs N] [--survivors] [PART OF A PATH ...]
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "sfd_cli"

# What is mutated, and the quick tests that should fall: the only place that knows where things are.
MODULES: dict[str, list[str]] = {
    "diffusion/schedule.py": ["diffusion/test_schedule.py", "diffusion/test_solver.py", "diffusion/test_extending.py"],
    "diffusion/latents.py": ["diffusion/test_latents.py"],
    "diffusion/conditions.py": ["diffusion/test_conditions.py"],
    "diffusion/objective.py": ["diffusion/test_objective.py"],
    "diffusion/guidance.py": ["diffusion/test_guidance.py", "diffusion/test_solver.py"],
    "diffusion/spectra.py": ["diffusion/test_spectra.py"],
    "diffusion/class_accuracy.py": ["diffusion/test_class_accuracy.py"],
    "diffusion/wiener.py": ["diffusion/test_wiener.py"],
    "diffusion/solver.py": ["diffusion/test_solver.py", "diffusion/test_guidance.py", "diffusion/test_extending.py"],
    "diffusion/dormand_prince.py": ["diffusion/test_dormand_prince.py"],
    "diffusion/time_grid.py": ["diffusion/test_solver.py", "diffusion/test_solver_start.py"],
    "diffusion/interpolation.py": ["diffusion/test_interpolation.py"],
    "evaluation/gaussian.py": ["evaluation/test_frechet.py", "evaluation/test_scores.py"],
    "evaluation/frechet.py": ["evaluation/test_frechet.py", "evaluation/test_scores.py"],
    "evaluation/kid.py": ["evaluation/test_kid.py", "evaluation/test_scores.py"],
    "evaluation/precision_recall.py": ["evaluation/test_precision_recall.py", "evaluation/test_scores.py"],
    "evaluation/metric.py": ["evaluation/test_scores.py"],
    "evaluation/image_fidelity.py": ["evaluation/test_image_fidelity.py"],
    "evaluation/lpips.py": ["evaluation/test_image_fidelity.py"],
    "evaluation/features.py": ["evaluation/test_features.py", "evaluation/test_scores.py"],
    "evaluation/scores.py": ["evaluation/test_scores.py"],
    "data/moments.py": ["data/test_moments.py"],
    "data/near_duplicates.py": ["data/test_near_duplicates.py"],
    "data/order.py": ["data/test_order.py"],
    "data/store.py": ["data/test_store.py"],
    "data/shards.py": ["data/test_shards.py", "data/test_store.py"],
    "training/averages.py": ["training/test_fit.py", "training/test_step.py"],
    "training/optimizers.py": ["training/test_optimizers.py"],
    "training/running_means.py": ["training/test_running_means.py"],
    "training/settings.py": ["training/test_settings.py"],
    "training/step.py": ["training/test_step.py", "training/test_fit.py"],
    "training/validation.py": ["training/test_validation.py"],
}
# Tests that start a program, which runs the code as it is, or wait for the clock.
UNFIT = "not killed and not more_shards_than and not equal_bytes and not hang_on_the_last_bits"
EQUIVALENTS = ROOT / "tests" / "mutation_equivalents.toml"
RESULTS = ROOT / ".mutation.json"


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the function it is in, the line it makes, and the module's whole new text."""

    module: str
    where: str
    was: str
    line: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.module} {self.where}: {self.was} -> {self.line}"

    @property
    def excuses(self) -> set[tuple[str, str, str]]:
        """The explanations that would hold for it: of its line, or of its line and what stood there."""
        return {(self.where, self.line, ""), (self.where, self.line, self.was)}


def mutants_of(module: str, names: Iterable[str] = ()) -> list[Mutant]:
    import libcst as cst
    from libcst.metadata import MetadataWrapper
    from mutmut.mutation.mutators import mutation_operators

    # Texts (strings with a space too), progress bars, imports and types make no numbers.
    passed_over = (cst.Raise, cst.Import, cst.ImportFrom, cst.Annotation, cst.Decorator, cst.Assert)
    source = (ROOT / PACKAGE / module).read_text()
    changes: list[tuple[Any, Any]] = []

    class Finder(cst.CSTVisitor):
        def on_visit(self, node: cst.CSTNode) -> bool:
            if isinstance(node, passed_over) or _names_a_type(node) or _called(node) == "say":
                return False
            if _called(node) == "progress":
                for argument in node.args:
                    if argument.keyword is None:
                        argument.visit(self)
                        break
                return False
            if not (isinstance(node, cst.Call) and _called(node) in ("len", "isinstance", "super")):
                for kind, operator in mutation_operators:
                    if isinstance(node, kind):
                        made = list(operator(node))
                        if kind is cst.BaseString:
                            made = [] if " " in getattr(node, "value", "") else made[:1]
                        changes.extend((node, new) for new in made)
            return True

    tree = MetadataWrapper(cst.parse_module(source)).module
    tree.visit(Finder())
    found, scopes = {}, _scopes(source)
    for old, new in changes:
        text = tree.deep_replace(old, new).code
        if text == source:
            continue
        diff = list(difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm=""))
        first = int(diff[2].split()[1][1:].split(",")[0])
        was, line = (" ".join(part[1:].strip() for part in diff[3:] if part[0] == sign) for sign in "-+")
        mutant = Mutant(module, scopes.get(first, "module"), was, line, text)
        if not _parses(text) or _loose(was) == _loose(line):
            continue
        found.setdefault(text, mutant)
    return list(found.values())


def _called(node: Any) -> str:
    name = getattr(getattr(node, "func", None), "value", "")
    return name if isinstance(name, str) else ""


def _names_a_type(node: Any) -> bool:
    """Whether the node is an assignment such as `Slope = Callable[...]` or `T = TypeVar("T")`."""
    import libcst as cst
    import libcst.matchers as m

    kinds = m.Name("Callable") | m.Name("Mapping") | m.Name("dict") | m.Name("list")
    alias = m.Subscript(value=kinds) | m.Call(func=m.Name("TypeVar"))
    if isinstance(node, cst.Call):
        return m.matches(node, m.Call(func=m.Name("cast") | m.Name("TypeVar")))
    return isinstance(node, cst.Assign) and m.matches(node.value, alias)


def _scopes(source: str) -> dict[int, str]:
    """The function that every line is in, innermost names last."""
    found: dict[int, str] = {}

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
                found.update(dict.fromkeys(range(child.lineno, (child.end_lineno or 0) + 1), inner))
            visit(child, inner)

    visit(ast.parse(source), "")
    return found


def _loose(line: str) -> str:
    """The line without `strict=` of zip, an assertion that a sound caller never meets."""
    return re.sub(r",? *strict=(True|False|None)|, (?=\))", "", line)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Imports one module from another text."""

    def __init__(self, module: str, text: str) -> None:
        self._name = f"{PACKAGE}.{module.removesuffix('.py').replace('/', '.')}"
        self._text = text

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self._text)
        return spec


def _run_tests(tests: list[str], basetemp: str) -> int:
    import pytest

    paths = [str(ROOT / "tests" / test) for test in tests]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--durations=0", "-k", UNFIT]
    return int(pytest.main([*options, f"--basetemp={basetemp}", *paths]))


def _start(module: str, text: str | None, basetemp: str, tell: int | None = None) -> int:
    """Fork a process that runs the module's tests; its exit code says how they ended."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        if text is not None:
            sys.meta_path.insert(0, _Finder(module, text))  # type: ignore[arg-type]
        code = _run_tests(MODULES[module], basetemp)
        if tell is not None:
            os.write(tell, json.dumps(sorted(sys.modules)).encode())
            os.close(tell)
    finally:
        os._exit(code)


def _baseline(module: str) -> float:
    """Seconds that the module's tests take as they are; what they import is imported here too."""
    for last in (False, True):
        started, (read, write) = time.monotonic(), os.pipe()
        with tempfile.TemporaryDirectory() as folder:
            # The second time through the loader of mutants, which must change nothing by itself.
            text = (ROOT / PACKAGE / module).read_text() if last else None
            child = _start(module, text, f"{folder}/pytest", write)
            os.close(write)
            told = b""
            while part := os.read(read, 1 << 16):
                told += part
            os.close(read)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise SystemExit(f"the tests of {module} fail as they are (exit code {code})")
        if last:
            return time.monotonic() - started
        here = {path.stem for path in (ROOT / "tests").rglob("*.py")}
        for name in json.loads(told):
            if name.split(".")[0] not in {PACKAGE, *here, "__main__", "__mp_main__"}:
                try:
                    import_module(name)
                except Exception:  # a name that only its parent can make
                    continue
    raise AssertionError


def run(mutants: list[Mutant], seconds: float, jobs: int) -> Iterator[tuple[Mutant, str]]:
    """How each mutant ended: killed, timeout or survived."""
    limit, waiting = 5 * seconds + 5, list(reversed(mutants))
    running: dict[int, tuple[Mutant, float, str]] = {}
    gc.freeze()  # or every collection in a child would copy the memory it shares
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant, folder = waiting.pop(), tempfile.mkdtemp()
            running[_start(mutant.module, mutant.text, f"{folder}/pytest")] = (mutant, time.monotonic() + limit, folder)
        ended, status = os.waitpid(-1, os.WNOHANG)
        late = [child for child, (_, deadline, _) in running.items() if time.monotonic() > deadline]
        if not ended and late:
            os.killpg(late[0], signal.SIGKILL)
            ended, status = os.waitpid(late[0], 0)
        if ended not in running:
            select.select([], [], [], 0.01)
            continue
        mutant, _, folder = running.pop(ended)
        shutil.rmtree(folder, ignore_errors=True)
        if ended in late:
            yield mutant, "timeout"
        else:
            yield mutant, "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", help="only modules whose path holds one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--survivors", action="store_true", help="only those that survived last time")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["OMP_NUM_THREADS"] = "1"
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)  # a failure is enough: nobody reads the smallest one
    settings.register_profile("mutation", derandomize=True, database=None, print_blob=False, phases=phases)
    settings.load_profile("mutation")
    equivalents, used = _equivalents(), set()
    chosen = [m for m in MODULES if not arguments.parts or any(part in m for part in arguments.parts)]
    table = []
    for module in chosen:
        mutants = mutants_of(module)
        before = _results().get(module, {})
        wanted = [m for m in mutants if not arguments.survivors or before.get(m.key, "survived") == "survived"]
        started, seconds = time.monotonic(), _baseline(module)
        print(f"{module}: {len(wanted)} of {len(mutants)} mutants, tests take {seconds:.1f} s", flush=True)
        found = {m.key: before[m.key] for m in mutants if m.key in before} if arguments.survivors else {}
        for mutant, end in run(wanted, seconds, arguments.jobs):
            found[mutant.key] = end
            if end == "survived" and not mutant.excuses & equivalents:
                print(f"  survived in {mutant.where}\n    - {mutant.was}\n    + {mutant.line}", flush=True)
        RESULTS.write_text(json.dumps(_results() | {module: found}, indent=1))
        excused = {m.key for m in mutants if m.excuses & equivalents}
        used |= {excuse for m in mutants if found[m.key] == "survived" for excuse in m.excuses}
        counts = Counter("explained" if e == "survived" and k in excused else e for k, e in found.items())
        table.append((module, len(found), counts))
        print(f"  {dict(counts)} in {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{'module':30} mutants  killed  explained  unexplained")
    for module, count, counts in table:
        killed = counts["killed"] + counts["timeout"]
        print(f"{module:30} {count:7} {killed:7} {counts['explained']:10} {counts['survived']:12}")
    total, left = sum(count for _, count, _ in table), sum(counts["survived"] for _, _, counts in table)
    print(f"{left} of {total} survive unexplained ({100 * left / max(total, 1):.1f} %)")
    if not arguments.parts and (stale := equivalents - used):
        print("explained, but not among the survivors any more:", *sorted(stale), sep="\n  ")
    raise SystemExit(left > 0.05 * total)


def _results() -> dict[str, dict[str, str]]:
    """How every mutant ended when its module was run last."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _equivalents() -> set[tuple[str, str, str]]:
    entries = tomllib.loads(EQUIVALENTS.read_text())["equivalent"]
    return {(entry["where"], entry["line"], entry.get("was", "")) for entry in entries}


if __name__ == "__main__":
    main()
