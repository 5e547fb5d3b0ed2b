import pytest

from disp.auditing.sentence_ends import SENTENCE_ENDS, sentences_of


@pytest.mark.parametrize(
    "sentences",
    [
        ["It costs 3.50 at shop.example/a?b=1!", "Is it?", "Yes…", "No"],
        ["यह एक कुत्ता है।", "वह लाल है।"],
        ["یہ ایک کتا ہے۔", "کیا وہ سرخ ہے؟"],
        ["Սա շուն է։", "Նա կարմիր է։"],
        ["ይህ ውሻ ነው።", "ቀይ ነው።"],
        ["ဒါက ခွေးပါ။", "အနီရောင်ပါ။"],
        ["នេះជាឆ្កែ។", "វាពណ៌ក្រហម។"],
        ["这是一只狗。", "它是红色的！"],
        ["３．５キロです．", "赤いです．"],
    ],
)
@pytest.mark.parametrize("between", ["", " ", "\n"])
def test_sentences_end_with_the_marks_of_any_script(sentences, between):
    """Also where no space comes after them, as far as they do not stand in numbers and addresses."""
    if sentences[0][-1] in ".!?…" and not between:
        assert sentences_of("".join(sentences)) == ["".join(sentences)]
    else:
        assert sentences_of(between.join(sentences)) == sentences


def test_no_mark_is_a_part_of_a_word():
    assert len(set(SENTENCE_ENDS)) == len(SENTENCE_ENDS) > 150
    assert not any(mark.isalnum() or mark.isspace() or mark in ",;:\"'()-" for mark in SENTENCE_ENDS)
