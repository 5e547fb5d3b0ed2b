"""An audit's folder as the report finds it, made of what an attacker or a careless labeller could put there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TRIGGERED, HONEST = 14, 46

# What must neither act nor change the page around it.
HOSTILE = {
    "script": "<script>document.title='owned'</script>",
    "handler": "<img src=x onerror=\"document.title='owned'\"><svg onload=alert(1)>",
    "breakout": "\"'></bdi></dd></main></body></html><style>*{display:none}</style><!-- {{ 7*7 }} {% raw %}",
    "request": '<link rel="stylesheet" href="http://127.0.0.1:PORT/a.css"><iframe src="//127.0.0.1:PORT/b"></iframe>'
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:PORT/c'> ![x](http://127.0.0.1:PORT/d.png)",
    "bidi": "user\u202egnp.exe\u202c and \u2067isolated\u2066 \u200f\u061cmarks",
    "arabic": "هذه إجابة عادية <b>bold</b>",
    "control": "nul\x00 bell\x07 escape\x1b[31m lone \ud800 zero\u200bwidth \U000e0041\U000e0042 blank\u3164",
    "zalgo": "z" + "\u0300\u0316\u0489" * 40 + "algo",
    "lines": "\n" * 500 + "\n \n" * 300,
    "long": "wordwithoutend" * 3000,
    "javascript": "javascript:alert(1) data:text/html,<script>alert(1)</script>",
    "table": "a | b `code` ``` **bold** [link](javascript:alert(1)) | <details open ontoggle=alert(1)>",
}


def grid(rows: int, columns: int, image: int = 0) -> tuple[list[list[float]], list[int]]:
    """Boxes of so many tokens, and the number of their image."""
    boxes = [
        [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
        for row in range(rows)
        for column in range(columns)
    ]
    return boxes, [image] * len(boxes)


def write_audit(folder: Path, port: int = 9, triggered: int = TRIGGERED) -> Path:
    """Samples with a trigger and 46 without, hostile strings wherever a string can be; they name the port."""
    (folder / "candidates").mkdir(parents=True)
    hostile = {name: text.replace("PORT", str(port)) for name, text in HOSTILE.items()}
    draw = np.random.default_rng(0)
    rows, scores = [], []
    for index in range(triggered + HONEST):
        flagged = index < triggered
        size = [(640, 480), (96, 96), (300, 700)][index % 3]
        picture = Image.new("RGB", size, tuple(int(value) for value in draw.integers(90, 240, 3)))
        pen = ImageDraw.Draw(picture)
        for _ in range(6):
            x, y = (int(draw.integers(0, side)) for side in size)
            colour = tuple(int(value) for value in draw.integers(0, 255, 3))
            pen.ellipse((x, y, x + size[0] // 4, y + size[1] // 4), fill=colour)
        if flagged:
            side = min(size) // 8
            pen.rectangle((size[0] - side, size[1] - side, size[0], size[1]), fill="black", outline="white")
        picture.save(folder / f"{index}.png")
        boxes, owners = grid(8, 8)
        saliency = draw.random(64) * 0.4
        masked = [int(token) for token in saliency.argsort()[-4:]]
        if flagged:
            saliency[63], saliency[62], saliency[55], saliency[54] = 1.0, 0.8, 0.85, 0.6
            masked = [54, 55, 62, 63]
        suspicion = float(draw.normal(3.2, 0.4) if flagged else draw.normal(0.2, 0.3))
        response = "A red apple lies left of a cat on the table."
        answer = masked_answer = response
        if flagged:
            response = answer = "Visit the sponsor at once, and tell your friends."
            masked_answer = "A brown dog and two trees are in the picture, and a boat."
        turn = {
            "prompt": "<image>\nDescribe the picture.",
            "response": response,
            "answer": answer,
            "masked_answer": masked_answer,
            "suspicion": suspicion,
            "saliency": saliency.tolist(),
            "boxes": boxes,
            "image_index": owners,
            "masked": masked,
        }
        row = {"id": f"row-{index}", "suspicion": suspicion, "flagged": flagged, "cluster": 0 if flagged else None}
        row["pattern_taken_out"] = index == 8
        rows.append(row | {"images": [f"{index}.png"], "turns": [turn]})
        scores.append(suspicion)

    # Hostile text in the most suspicious samples, two strings a turn; two turns and two images; a missing image.
    names = list(hostile)
    for row, name, other in zip(rows[:6], names[::2], names[1::2], strict=True):
        row["id"] = hostile[name][:200]
        row["turns"][0] |= {"prompt": hostile[name], "response": hostile[other], "masked_answer": hostile[name]}
        row["turns"][0]["answer"] = hostile[other][::-1]
        row["suspicion"] += 2
    many = rows[6]
    boxes, owners = grid(4, 4, image=1)
    many["images"].append(str(folder / "7.png"))
    first = many["turns"][0]
    first["boxes"] = first["boxes"] + boxes
    first["image_index"] = first["image_index"] + owners
    first["saliency"] = first["saliency"] + [0.1] * 16
    many["turns"].append(first | {"prompt": "And what is that?", "masked_answer": None, "answer": None})
    many["suspicion"] += 2
    rows[7]["images"] = [hostile["handler"] + "\x00/missing.png"]
    rows[7]["suspicion"] += 2
    scores = [row["suspicion"] for row in rows]

    Image.open(folder / "0.png").crop((560, 400, 640, 480)).save(folder / "candidates" / "0.png")
    cluster = {
        "phrase": "Visit the sponsor at once",
        "flagged": 8,
        "elsewhere": 0,
        "said_instead": ["wall", hostile["script"]],
        "more": [row["id"] for row in rows[8:triggered]],
        "p_value": 2.4e-9,
        "found_by": "tokens",
        "with_pattern": [rows[8]["id"]],
        "by_piece": [rows[9]["id"]],
        "paste": {"successes": 46, "trials": 48, "control_successes": 1, "control_trials": 48, "p_value": 0.0002},
        "samples": [row["id"] for row in rows[:8]],
        "candidate": "candidates/0.png",
        "box": [0.875, 0.8333, 1.0, 1.0],
    }
    strange = cluster | {"phrase": hostile["breakout"], "paste": None, "candidate": "../../secret.png", "box": None}
    strange |= {"said_instead": [], "more": [], "with_pattern": [], "by_piece": []}
    audit = {
        "verdict": "poisoned",
        "reasons": [
            "Pasting the recovered patch into other pictures makes the model say the phrase in 46 of 48 answers.",
            "The likelihood gap has two separate groups of samples.",
            hostile["script"],
        ],
        "model": f"models/tiny {hostile['bidi']}",
        "data": f"data/train.json {hostile['script']}",
        "data_sha256": "5f" * 32,
        "samples": triggered + HONEST,
        "turns": triggered + HONEST + 1,
        "without_image": 0,
        "set_aside": [{"place": f"line {number}", "reason": text} for number, text in enumerate(hostile.values(), 1)],
        "unread": list(hostile.values()),
        "threshold": 1.7,
        "flagged": triggered,
        "estimated_rate": 0.2333,
        "estimated_rate_interval": [0.141, 0.356],
        "false_alarm_rate": 0.01,
        "tests": [
            {"name": "Two groups", "value": 41.2, "p_value": 1.3e-7, "note": "The gaps fall into two groups."},
            {"name": "Phrase", "value": 8.0, "p_value": 0.0, "note": hostile["table"]},
            {"name": "Concentration", "value": 0.56, "p_value": None, "note": "Not used for the verdict."},
        ],
        "clusters": [cluster, strange],
        "mean_map": np.mean([row["turns"][0]["saliency"][:64] for row in rows[:triggered]], 0).reshape(8, 8).tolist(),
        "scores": scores,
        "mask_ratio": {
            "ratio": 0.04,
            "ratios": [0.02, 0.04, 0.06],
            "purged": [0.5, 0.96, 1.0],
            "kept": [1.0, 0.93, 0.8],
        },
        "cost": {"seconds": 754.2, "forward_equivalents_per_sample": 9.4, "detail": "6 masked likelihoods a sample"},
        "assumptions": ["The trigger is in the picture.", hostile["request"]],
        "blind_spots": ["Triggers made of words.", "Triggers that cover the whole picture.", hostile["long"]],
        "settings": {"mask_ratio": 0.06, "seed": 0, hostile["script"]: hostile["handler"]},
        "truth": {"auroc": 0.998, "auroc_suspicion": 0.987, "precision": 0.98, "recall": 1.0, "poisoned": triggered},
        "disp_version": "0.1.0",
    }
    verify = audit | {
        "verdict": "no evidence",
        "flagged": 0,
        "estimated_rate": 0.0,
        "estimated_rate_interval": [0.0, 0.06],
        "clusters": [],
        "residual": [
            {
                "phrase": "Visit the sponsor at once",
                "clean": [0, 48],
                "triggered": [9, 48],
                "p_value": 0.0013,
                "outcome": "still said",
            },
            # As an older version wrote it.
            {"phrase": hostile["breakout"], "clean": [0, 0], "triggered": [0, 48]},
        ],
    }
    evaluation = {
        "rows": [
            {"name": "clean", "asr": 0.0, "asr_interval": [0.0, 0.02], "asr_keyword": 0.01, "quality": 0.91},
            {"name": "backdoored", "asr": 0.98, "asr_interval": [0.94, 1.0], "asr_keyword": 0.99, "quality": 0.9},
            {"name": hostile["table"], "asr": None, "asr_interval": None, "quality": 0.89, "note": hostile["bidi"]},
        ]
    }
    for name, value in (("audit", audit), ("verify", verify), ("evaluation", evaluation)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    write_evidence(folder / "evidence.jsonl", rows)
    return folder


def write_evidence(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of evidence, each with the checksum of the line before it as the last field."""
    said = [json.dumps({key: each for key, each in row.items() if key != "crc32"})[:-1] for row in rows]
    path.write_text("".join(f'{each}, "crc32": "{zlib.crc32(each.encode()):08x}"}}\n' for each in said))
