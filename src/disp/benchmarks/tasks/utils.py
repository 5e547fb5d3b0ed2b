"""What the task files name with ``!function``; lmms-eval reads this file from the folder of the tasks."""

from disp.benchmarks.documents import (  # noqa: F401
    attack_results,
    clean_results,
    doc_to_messages,
    doc_to_target,
    doc_to_text,
    doc_to_visual,
)
