import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from audit_folder import write_evidence
from PIL import Image

from disp.errors import DispError
from disp.report import html
from disp.report.escape import visible
from disp.report.html import write_report

# All that a page without scripts, forms and addresses needs.
ELEMENTS = set(
    "html head meta title style body a header main section nav footer article h1 h2 h3 h4 h5 p span small q bdi code "
    "abbr ul li dl dt dd div table caption thead tbody tr th td figure figcaption img details summary del ins "
    "svg defs desc pattern rect circle path line text lineargradient stop".split()
)
VOID = {"meta", "img"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.by_tag = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
            for tag in set(self.open):
                self.by_tag.setdefault(tag, []).append(data)

    @property
    def shown(self):
        return " ".join("".join(self.text).split())

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(whole_audit, tmp_path_factory):
    folder = shutil.copytree(whole_audit, tmp_path_factory.mktemp("page") / "audit")
    return Page(write_report(folder).read_text(encoding="utf-8"))


def change_audit(folder, **changes):
    audit = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps(audit | changes))


def test_only_known_elements_and_no_address(page):
    assert {tag for tag, _ in page.tags} <= ELEMENTS
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        for name in ("src", "href", "xlink:href", "action", "srcset", "background"):
            if name in attrs:
                assert re.fullmatch(r"#[a-z0-9-]+|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", attrs[name]), tag
        assert attrs.get("http-equiv", "Content-Security-Policy") == "Content-Security-Policy"
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = [attrs["href"][1:] for attrs in page.attributes("a")]
    used += [name for _, attrs in page.tags for name in attrs.get("aria-labelledby", "").split()]
    assert set(used) <= set(ids)


def test_policy_allows_the_one_style_sheet_and_pictures_within(audit_folder):
    text = write_report(audit_folder).read_text(encoding="utf-8")
    policy = next(attrs["content"] for attrs in Page(text).attributes("meta") if attrs.get("http-equiv") is not None)
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\((?!#)|@import|@font-face|expression", style)


def test_hostile_text_is_shown_as_text(page, hostile):
    assert hostile["script"] in page.shown
    assert hostile["breakout"] in page.shown  # {{ 7*7 }} and all
    assert "userU+202Egnp.exeU+202C and" in page.shown and "U+202E" in page.by_tag["span"]
    assert not set(page.shown) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200f\u200b\x00\x1b\ud800")
    # Forty-two thousand letters are cut, and the number left out is there.
    assert re.search(r"wordwithoutend.{0,1000}… 41,000 more characters", page.shown)
    assert "wordwithoutend" * 100 not in page.shown


def test_what_a_reader_needs_is_there(page):
    assert page.shown.index("Verdict: poisoned") < page.shown.index("In numbers")
    for text in (
        "an estimated 23.3% of its 60 samples (95% interval 14.1% to 35.6%)",
        "12 min 34 s",
        "as long as 9.4 forward passes a sample",
        "1.3 × 10⁻⁷",
        "< 10⁻³⁰⁰",
        "Visit the sponsor at once",
        "In 8 answers above the threshold, and in 0 other samples; p = 2.4 × 10⁻⁹.",
        "6 further samples flagged:",
        "46 of 48",
        "9 of 48 (18.8%)",
        "the recovered model still says it (p = 0.0013)",
        "98.0% [94.0%, 100.0%]",
        "2 of 9 words of the response are left once the tokens are masked.",
        "Flagged samples: 12 of 14, the most suspicious first",
        "Triggers made of words.",
        "12 rows could not be audited.",
        "12 files beside the data were not read:",
        "threshold 1.7",
        "Mask ratio to rewrite every answer4.0%",
        "96.0% of the flagged answers lose their phrase, and the others keep 93.0% of their words",
        "mask_ratio",
    ):
        assert text in page.shown, text
    assert "Visit" in page.by_tag["del"] and "boat" in "".join(page.by_tag["ins"])


def test_pictures_are_small_named_and_bare(page):
    images = page.attributes("img")
    # Sixteen samples: one lacks its picture, one has two pictures in two turns; the candidate and the mean map.
    assert len(images) == 14 * 2 + (2 + 2 * 2) + 2
    for attrs in images:
        assert len(attrs["alt"]) > 5
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1]))) as image:
            assert image.size == (int(attrs["width"]), int(attrs["height"]))
            assert max(image.size) <= 512
            assert not {"exif", "comment", "icc_profile"} & image.info.keys()
    assert "there is no file" in page.shown and "lies outside the audit’s folder" in page.shown
    alts = [attrs["alt"] for attrs in images]
    outlined = "4 of 64 visual tokens masked and outlined"
    assert (
        sum(
            alt == f"Saliency over the image, highest 94% from the left and 94% from the top; {outlined}"
            for alt in alts
        )
        >= 10
    )
    assert "Saliency over image 2, highest 12% from the left and 12% from the top; 0 of 16 visual tokens masked" in alts


def test_metadata_of_a_picture_stays_behind(audit_folder):
    image = Image.open(audit_folder / "0.png")
    exif = Image.Exif()
    exif[0x010E] = "SECRET PLACE"
    image.save(audit_folder / "0.png", exif=exif, icc_profile=b"SECRET PROFILE")
    text = write_report(audit_folder).read_text(encoding="utf-8")
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]{200,})", text)
    assert pictures
    for data in pictures:
        assert b"SECRET" not in base64.b64decode(data)


def test_headings_descend_one_by_one_and_tables_have_heads(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert {attrs.get("scope") for attrs in page.attributes("th")} <= {"row", "col"}
    assert next(attrs for attrs in page.attributes("html"))["lang"] == "en"
    names = [attrs["class"] for attrs in page.attributes("bdi")]
    assert names and set(names) == {"data"}


def test_files_are_whole_and_the_same_every_time(audit_folder):
    first = write_report(audit_folder)
    assert first == audit_folder / "report.html"
    text, summary = first.read_bytes(), (audit_folder / "summary.md").read_bytes()
    write_report(audit_folder)
    assert (first.read_bytes(), (audit_folder / "summary.md").read_bytes()) == (text, summary)
    assert not list(audit_folder.glob(".*"))
    assert len(text) < 1_500_000


def test_the_number_of_samples_is_chosen(audit_folder):
    page = Page(write_report(audit_folder, top=3).read_text(encoding="utf-8"))
    samples = [attrs["id"] for attrs in page.attributes("article") if "id" in attrs]
    assert samples == [f"sample-{index}" for index in range(1, 3 + 4 + 1)]


def test_every_flagged_row_is_found_by_its_id(audit_folder):
    page = write_report(audit_folder, top=3).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (audit_folder / "evidence.jsonl").open(encoding="utf-8")]
    flagged = sorted((row for row in rows if row["flagged"]), key=lambda row: -row["suspicion"])
    section = page.partition('<section id="flagged"')[2].partition("</section>")[0]
    lines = re.findall(r'<tr id="flagged-(\d+)">(.*?)</tr>', section, flags=re.DOTALL)
    assert [int(number) for number, _ in lines] == list(range(1, len(flagged) + 1))
    for (_, line), row in zip(lines, flagged, strict=True):
        assert str(visible(row["id"], 120)) in line
    reasons = [re.findall(r'<td class="prose">([^<]*)</td>$', line)[0] for _, line in lines]
    assert all(reason.startswith(("Another answer takes", "Its answer", "Its picture")) for reason in reasons)
    assert len(set(reasons)) == 4
    # Rows with their evidence on the page are linked to it, and phrases to the rows.
    assert section.count('href="#sample-') == 3
    links = set(re.findall(r'href="#(flagged-\d+|sample-\d+)"', page))
    assert links and all(f'id="{link}"' in page for link in links)
    assert any(link.startswith("flagged-") for link in links)


def test_a_long_index_is_cut_and_says_so(audit_folder, monkeypatch):
    monkeypatch.setattr(html, "MAX_INDEXED", 5)
    page = write_report(audit_folder, top=3).read_text(encoding="utf-8")
    assert page.count('<tr id="flagged-') == 5 and "9 more rows, see" in " ".join(page.split())


def test_every_cluster_is_shown_by_a_sample(audit_folder):
    path = audit_folder / "evidence.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    weakest = min((row for row in rows if row["flagged"]), key=lambda row: row["suspicion"])
    weakest["cluster"] = 1
    write_evidence(path, rows)
    page = Page(write_report(audit_folder, top=3).read_text(encoding="utf-8"))
    assert f"Sample {weakest['id']}" in page.shown


def test_masking_is_not_said_to_remove_what_the_model_never_said(tmp_path):
    def told(answer, masked):
        turn = {"prompt": "Which?", "response": "B", "answer": answer, "masked_answer": masked}
        row = {"id": "a", "suspicion": 0.0, "flagged": True, "cluster": None, "images": [], "turns": [turn]}
        write_evidence(tmp_path / "evidence.jsonl", [row])
        audit = {"verdict": "suspicious", "samples": 1, "flagged": 1, "threshold": 1.0, "scores": [0.0]}
        (tmp_path / "audit.json").write_text(json.dumps(audit))
        return Page(write_report(tmp_path).read_text(encoding="utf-8")).shown

    never = "the model does not give the response in the data to the whole picture either"
    assert never in told("A happy lemon.", "A happy lemon.")
    assert never not in told("B", "A happy lemon.") and "0 of 1 word" in told("B", "A happy lemon.")
    assert never not in told("B", "B") and never not in told(None, "A happy lemon.")


def test_clean_data_makes_a_short_calm_page(tmp_path):
    turn = {"prompt": "Hi", "response": "Hello.", "answer": None, "masked_answer": None}
    row = {"id": "a", "suspicion": 0.1, "flagged": False, "cluster": None, "images": [], "turns": [turn]}
    write_evidence(tmp_path / "evidence.jsonl", [row])
    audit = {"verdict": "no evidence", "samples": 1, "flagged": 0, "threshold": None, "scores": [0.1]}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No evidence of a backdoor was found in the 1 sample; that is no proof that there is none." in page.shown
    assert "This sample has no image." in page.shown and "None is flagged." in page.shown
    assert "After the defence" not in page.shown


def test_saliency_that_does_not_fit_is_said(audit_folder):
    path = audit_folder / "evidence.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[8]["turns"][0]["boxes"].pop()
    rows[9]["turns"][0]["image_index"][0] = 7
    write_evidence(path, rows)
    page = Page(write_report(audit_folder).read_text(encoding="utf-8"))
    assert "The saliency cannot be placed: 64 scores, 63 boxes and 64 indices of images." in page.shown
    assert "The saliency cannot be placed: a visual token of image 7, but there are 1 images." in page.shown


def test_a_row_that_is_none_of_evidence_is_named(audit_folder):
    write_evidence(audit_folder / "evidence.jsonl", [{"id": "a"}])
    with pytest.raises(DispError, match=r"evidence\.jsonl, line 1: not a row of evidence; run `disp audit` again"):
        write_report(audit_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("audit.json", None, "audit.json: no such file; run `disp audit`"),
        ("evidence.jsonl", None, "evidence.jsonl: no such file"),
        ("audit.json", "{", "audit.json: damaged"),
        ("audit.json", "[]", "audit.json: holds a list"),
        ("audit.json", '{"verdict": "poisoned"}', "audit.json: has no samples, flagged"),
        ("verify.json", "{}", "verify.json: has no verdict"),
        ("evaluation.json", "nonsense", "evaluation.json: damaged"),
        ("evidence.jsonl", '{"id": "a"}\n', "evidence.jsonl, line 1: damaged, or written by an older version; run"),
        ("evidence.jsonl", '{"id"\n', "evidence.jsonl, line 1: damaged"),
        ("evidence.jsonl", "", "evidence.jsonl: 0 rows, but audit.json is about 60 samples; run `disp audit` again"),
    ],
)
def test_a_missing_or_damaged_file_is_named(audit_folder, name, content, message):
    path = audit_folder / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DispError, match=re.escape(message)):
        write_report(audit_folder)
    assert not (audit_folder / "report.html").exists()


def test_poisoned_samples_that_are_not_in_the_data_are_told(audit_folder):
    assert "not in the data" not in Page(write_report(audit_folder).read_text(encoding="utf-8")).shown
    truth = json.loads((audit_folder / "audit.json").read_text(encoding="utf-8"))["truth"]
    change_audit(audit_folder, truth={**truth, "missing": 37})
    page = Page(write_report(audit_folder).read_text(encoding="utf-8"))
    assert re.search(r"Poisoned samples that are not in the data\s*37", page.shown)
    summary = (audit_folder / "summary.md").read_text(encoding="utf-8")
    assert re.search(r"poisoned samples that are not in the data \| 37", summary)


def test_undecided_and_unknown_verdicts(audit_folder, hostile):
    change_audit(audit_folder, verdict="suspicious")
    assert "14 of its 60 samples stand out" in Page(write_report(audit_folder).read_text(encoding="utf-8")).shown
    change_audit(audit_folder, verdict=hostile["breakout"])
    page = Page(write_report(audit_folder).read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} <= ELEMENTS
