"""Remarks about header elements that could not be used: counted over many files, printed at the end."""

from collections import Counter
from collections.abc import Iterable

from jaxpneumo.process.files import printable

SHOWN = 8  # sentences; an archive may have a different wrong value in every file


def tell(remarks: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """One line for each different remark, the most frequent first, with the first file and the number of files.

    Args:
      remarks: each file's source and its `Radiograph.remarks`.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for source, sentences in remarks:
        for sentence in sentences:
            counts[sentence] += 1
            first.setdefault(sentence, printable(source))
    lines = [
        f"{sentence}: {first[sentence]}{f' and {count - 1} more files' * (count > 1)}."
        for sentence, count in counts.most_common(SHOWN)
    ]
    if len(counts) > SHOWN:
        lines.append(f"{len(counts) - SHOWN} more kinds of header elements could not be used as they are.")
    return lines
