"""What to do with a data file of a kind that is not read."""

from __future__ import annotations

from disp.data.formats.json_files import is_json_name

_TABLE = (
    "a table of text is read as metadata.csv beside its pictures, with commas and a column file_name; call it so, or "
    "write it as JSON lines"
)
_PACKED = "unpack it first"
_LIST = "it lists data files; give these one by one, as its json_path entries name them"
# By what their names end with.
_REMEDIES = {
    **dict.fromkeys((".csv", ".tsv", ".xls", ".xlsx"), _TABLE),
    **dict.fromkeys((".zst", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".rar", ".csv.gz", ".tsv.gz"), _PACKED),
    **dict.fromkeys((".yaml", ".yml"), _LIST),
    ".arrow": "give the folder that save_to_disk has written, in which it lies",
}


def remedy_for(name: str) -> str | None:
    """What to do with a file of this name, so that it is read; None if nothing is known of its kind."""
    lower = name.lower()
    if lower != name and is_json_name(lower):
        return f"call it {lower}"
    return next((remedy for suffix, remedy in _REMEDIES.items() if lower.endswith(suffix)), None)
