"""The query of `muwa.data.metadata` on Spark, for metadata that lies on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muwa.data.metadata import Columns, unreadable


def spark_rows(files: Sequence[str], pattern: str, columns: Columns) -> Iterator[tuple[str, str]]:
    """(Url, caption) of the rows whose captions match a regular expression, as `duckdb_rows` gives them.

    The session is the one that runs, or a local one. Only matching rows leave the cluster.

    Args:
        files: Parquet files, as Spark takes them: paths, globs, s3a:// or hdfs:// addresses.

    Raises:
        ModuleNotFoundError: pyspark is not installed.
        ValueError: A file is missing, cannot be read, or lacks a column.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col

    session = SparkSession.builder.appName("muwa").getOrCreate()
    try:
        rows = session.read.parquet(*files).select(col(columns.url), col(columns.caption))
        kept = rows.where(col(columns.url).isNotNull() & col(columns.caption).rlike(pattern))
        for row in kept.toLocalIterator():
            yield row[0], row[1]
    except PySparkException as error:
        raise unreadable(files, columns, error) from error
