import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.report.escape import MAX_CHARACTERS, changes_html, compare, plain, visible


def text_of(changes, kinds):
    return "".join(change.text for change in changes if change.kind in kinds)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, naïve café", "plain words, naïve café"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\x00\x00\x00b", "a⟨U+0000 ×3⟩b"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\nb", "a⟨↵⟩b"),
        ("tag \U000e0041", "tag ⟨U+E0041⟩"),
        ("\u2603\ufe0f snow", "\u2603\ufe0f snow"),  # the usual end of an emoji
        ("a\ufe0f", "a⟨U+FE0F⟩"),
        ("e\u0301", "e\u0301"),
        ("e" + "\u0301" * 9, "e⟨U+0301 ×9⟩"),
        ("a" + " " * 300 + "b", "a⟨U+0020 ×300⟩b"),
        ("\u3164", "⟨U+3164⟩"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_hidden_characters_are_spelled(text, shown):
    assert plain(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_unseen_is_left(text):
    for shown in (plain(text), str(visible(text))):
        shown.encode("utf-8")
        unseen = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
        assert unseen <= {"\n"}
    assert "\n" not in plain(text)
    assert "\n\n\n" not in str(visible(text))


@given(st.text(st.sampled_from("<>&\"'/ab\u202e")))
def test_visible_has_no_markup_but_its_own(text):
    inner = str(visible(text)).removeprefix('<bdi class="data">').removesuffix("</bdi>")
    inner = inner.replace('<span class="hidden-character">', "").replace("</span>", "")
    assert not set(inner) & set("<>\"'")


def test_a_cut_is_counted():
    assert plain("x" * (MAX_CHARACTERS + 5000)).endswith("x … (5,000 more characters)")
    assert '<span class="cut">… 5,000 more characters</span>' in visible("x" * (MAX_CHARACTERS + 5000))
    assert plain("x" * (MAX_CHARACTERS + 1)) == "x" * (MAX_CHARACTERS + 1)  # not worth a cut


def test_line_breaks_are_kept_in_moderation():
    assert visible("a\nb\n\nc").count("\n") == 3
    assert visible("\n \n" * 400).count("\n") <= 2
    assert visible("a\n" * 400).count("\n") <= 30
    assert "more hidden characters" in visible("a\n" * 400)


@given(st.text(st.sampled_from("ab ,.\n")), st.text(st.sampled_from("ab ,.\n")))
def test_comparison_holds_both_texts_and_a_common_subsequence(old, new):
    found = compare(old, new)
    assert text_of(found.old, {"same", "removed"}) == old
    assert text_of(found.new, {"same", "added"}) == new
    assert text_of(found.old, {"same"}) == text_of(found.new, {"same"})
    assert 0 <= found.kept <= found.words
    if old == new:
        assert found.kept == found.words and not text_of(found.old, {"removed"})


def test_comparison_is_by_word():
    found = compare("A cat sits on the mat.", "A dog sits on a mat.")
    assert [change.text for change in found.old if change.kind == "removed"] == ["cat", "the"]
    assert [change.text for change in found.new if change.kind == "added"] == ["dog", "a"]
    assert (found.kept, found.words) == (4, 6)
    assert "A <del>cat</del> sits on <del>the</del> mat." in changes_html(found.old)
    assert "A <ins>dog</ins> sits on <ins>a</ins> mat." in changes_html(found.new)


def test_shared_spaces_and_commas_are_no_agreement():
    found = compare("one, two", "three, four")
    assert (found.kept, text_of(found.old, {"same"})) == (0, "")


def test_a_script_without_spaces_is_compared_by_character():
    found = compare("一只红色的猫", "一只蓝色的狗")
    assert text_of(found.old, {"removed"}) == "红猫"
    assert text_of(found.new, {"added"}) == "蓝狗"


def test_markup_in_a_change_is_text():
    found = compare("<b>x</b>", "<script>y</script>")
    assert "<script>" not in changes_html(found.new) and "&lt;" in changes_html(found.new)
