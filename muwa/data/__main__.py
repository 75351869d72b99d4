"""Find the pairs of names in LAION's metadata, before any image is downloaded.

python -m muwa.data urls PARQUET ... --name "Elon Musk" --out list.parquet     # the url list of img2dataset
python -m muwa.data urls s3://BUCKET/*.parquet --name "Elon Musk" --alias "E. Musk" --limit 500 --out F
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from muwa.cli.parser import OneLineParser
from muwa.errors import message_of
from muwa.runtime import stopping


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write the url list and say how many pairs each name has. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    urls = commands.add_parser("urls", help="write the url list of the pairs that name someone")
    urls.add_argument("files", nargs="+", help="parquet files: paths, globs, http(s):// or s3:// addresses")
    urls.add_argument("--name", action="append", required=True, help="a name; several: give it again")
    urls.add_argument("--alias", action="append", default=[], help="another spelling of the one name")
    urls.add_argument("--limit", type=int, help="at most this many pairs per name")
    urls.add_argument(
        "--engine", choices=("duckdb", "spark"), default="duckdb", help="spark: pip install -e '.[spark]'"
    )
    urls.add_argument("--url-col", default="URL")
    urls.add_argument("--caption-col", default="TEXT")
    urls.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.alias and len(args.name) > 1:
        parser.error("--alias needs a single --name")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit: got {args.limit}, want at least 1")
    from muwa.data.samples import fold

    if nothing := [name for name in (*args.name, *args.alias) if not fold(name)]:
        parser.error(f"--name: got {nothing[0]!r}, want letters or digits in it")
    from muwa.data.metadata import Columns, Rows, duckdb_rows, find, write_list

    columns = Columns(args.url_col, args.caption_col)
    try:
        rows: Rows = duckdb_rows
        if args.engine == "spark":
            from muwa.data.spark import spark_rows

            rows = spark_rows
        spellings = {name: [name, *args.alias] for name in args.name}
        found = find(args.files, spellings, columns, limit=args.limit, rows=rows)
        counts = write_list(args.out, found, columns)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"muwa.data: {message_of(error)}", file=sys.stderr)
        return 2
    for name in args.name:
        print(f"{name}: {counts.get(name, 0):,} pairs")
    if not counts:
        print("muwa.data: no caption names anyone, nothing was written", file=sys.stderr)
        return 1
    command = [
        *("img2dataset", "--url_list", str(args.out), "--input_format", "parquet", "--url_col", args.url_col),
        *("--caption_col", args.caption_col, "--output_format", "webdataset", "--output_folder", "FOLDER"),
    ]
    print(f"{args.out}: {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    with stopping.one_line("muwa.data", "No list was written: type the same command again."):
        sys.exit(main())
