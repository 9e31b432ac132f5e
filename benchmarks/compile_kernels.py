"""Compiles every form of every kernel that dispatch can choose, for GPUs that need not be there, and keeps figures.

python benchmarks/compile_kernels.py [--kernel verify] [--form bf16]   prints registers, spills and shared memory
python benchmarks/compile_kernels.py --write   writes docs/kernels.json and the tables of docs/kernels.md

Registers and stack are what the assembler says of the finished machine code; a kernel that spills uses stack. Loads
are those of the code before that. With --write the bytes of benchmarks/count_kernel_bytes.py are counted, too, which
takes minutes.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
# What later releases will have by default is not what these figures are of.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton  # noqa: E402
from h100 import least_us  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from dspark_hf.ops.dispatch import KERNELS  # noqa: E402
from dspark_hf.ops.spec import Configuration  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"
ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def configurations(kernels: Iterable[str] = KERNELS) -> list[tuple[str, Configuration]]:
    """Every form of the kernels, with the op's name."""
    modules = {name: importlib.import_module(f"dspark_hf.ops.{name}.triton") for name in kernels}
    return [(name, one) for name, module in modules.items() for one in module.configurations()]


def compile_one(configuration: Configuration, architecture: int) -> dict[str, int]:
    """Registers of a thread, bytes of stack (spills), of shared memory of a program, and of its widest load."""
    names = list(configuration.signature)
    source = ASTSource(
        fn=configuration.function,
        signature=dict(configuration.signature),
        constexprs={(names.index(name),): value for name, value in configuration.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in configuration.aligned if name in names},
    )
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        command = [str(CUOBJDUMP), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK", "LOCAL"))
    found = {"registers": registers, "stack": stack + local, "shared": kernel.metadata.shared}
    return found | {"load": widest_load(kernel.asm["ptx"])}


def widest_load(text: str) -> int:
    """Bytes that a thread reads at once at most: into registers, or past them into shared memory."""
    loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", text)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x(\w+)", text)
    return max([int(many or 1) * int(bits) // 8 for many, bits in loads] + [int(size, 16) for size in copies])


def compile_all(kernels: Iterable[str], form: str = "") -> list[dict[str, Any]]:
    """A row a configuration whose name has `form` in it, with the figures of each architecture."""
    rows = []
    for name, one in configurations(kernels):
        if form not in one.name:
            continue
        row = {"kernel": name, "form": one.name, "warps": one.num_warps}
        rows.append(row | {f"sm_{number}": compile_one(one, number) for number in ARCHITECTURES})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table: registers / spilled / shared / widest load, in bytes, for each architecture."""
    cells = [" / ".join(str(row[f"sm_{number}"][key]) for key in ("registers", "stack", "shared", "load"))
             for number in ARCHITECTURES]  # fmt: skip
    return f"| `{row['kernel']}` | {row['form']} | {row['warps']} | {' | '.join(cells)} |"


def compiled_table(rows: list[dict[str, Any]]) -> str:
    """The table of compiled forms."""
    names = [f"sm_{number}" for number in ARCHITECTURES]
    head = f"| kernel | form | warps | {' | '.join(names)} |\n|{'---|' * (3 + len(names))}"
    return "\n".join([head, *map(line, rows)])


def bytes_table(rows: list[dict[str, Any]]) -> str:
    """The table of bytes, with the times that an H100 cannot beat."""
    heads = ("kernel", "case", "moved, MB", "least, MB", "moved / least", "torch, MB", "kernel, predicted us")
    heads = (*heads, "torch, predicted us")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        ratio = row["moved"] / row["least"]
        times = [least_us(row[way], row["flops"]) for way in ("moved", "torch")]
        sizes = [f"{row[key] / 1e6:.3f}" for key in ("moved", "least")]
        lines.append(
            f"| `{row['kernel']}` | {row['case']} | {' | '.join(sizes)} | {ratio:.2f} | {row['torch'] / 1e6:.3f} | "
            f"{times[0]:.2f} | {times[1]:.2f} |"
        )
    return "\n".join(lines)


def with_tables(page: str, figures: dict[str, Any]) -> str:
    """The page with both tables in their places."""
    tables = {"compiled": compiled_table(figures["compiled"]), "bytes": bytes_table(figures["bytes"])}
    for name, table in tables.items():
        page = re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{table}\n\n\g<2>", page, flags=re.S)
    return page


def count_bytes(kernel: str) -> list[dict[str, Any]]:
    """What benchmarks/count_kernel_bytes.py prints, from a process of its own with the interpreter."""
    command = [sys.executable, str(Path(__file__).with_name("count_kernel_bytes.py")), "--kernel", kernel]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(one) for one in result.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="Only this one; may be repeated.")
    parser.add_argument("--form", default="", help="Only forms whose names have this in them.")
    parser.add_argument("--write", action="store_true", help="Write docs/kernels.json and docs/kernels.md.")
    arguments = parser.parse_args()
    if arguments.write and arguments.form:
        parser.error("--write takes whole kernels; leave --form out.")
    rows = compile_all(arguments.kernel or KERNELS, arguments.form)
    spilling = [f"{row['kernel']}, {row['form']}" for row in rows for number in ARCHITECTURES
                if row[f"sm_{number}"]["stack"] > 0]  # fmt: skip
    if spilling:
        sys.exit("these spill registers: " + "; ".join(spilling))
    if not arguments.write:
        return
    path, page = DOCS / "kernels.json", DOCS / "kernels.md"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"compiled": [], "bytes": []}
    others = [row for row in kept["compiled"] if arguments.kernel and row["kernel"] not in arguments.kernel]
    order = {name: place for place, name in enumerate(KERNELS)}
    rows = sorted([*others, *rows], key=lambda row: order[row["kernel"]])
    counted = [row for row in kept["bytes"] if arguments.kernel and row["kernel"] not in arguments.kernel]
    counted += [row for name in arguments.kernel or KERNELS for row in count_bytes(name)]
    counted.sort(key=lambda row: order[row["kernel"]])
    figures = {"triton": triton.__version__, "compiled": rows, "bytes": counted}
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    page.write_text(with_tables(page.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()
