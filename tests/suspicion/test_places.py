"""Which tokens of one turn show what another one hangs on."""

from PIL import Image

from disp.data.sample import Query
from disp.models.interface import raster_boxes
from disp.suspicion.evidence import Evidence
from disp.suspicion.places import tokens_at


def test_a_picture_that_is_laid_out_anew_is_masked_at_the_same_place():
    """An only picture has 4x4 tokens, one of several 2x2."""

    class Family:
        def token_boxes(self, places, size, images):
            assert len(places) == (16 if images == 1 else 4)
            return raster_boxes(places)

    def evidence_of(key, images, side, best=()):
        places = tuple((image, 0, y, x) for image in range(images) for y in range(side) for x in range(side))
        return Evidence(key, (0.0,) * len(places), places, 1.0, best)

    pictures = (Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)))
    alone, both = Query("s", 0, pictures[:1], (), "<image>?"), Query("s", 1, pictures, (), "<image>?")
    fine, coarse = evidence_of("s#0", 1, 4, (10, 15)), evidence_of("s#1", 2, 2, (1, 6))
    # The lower right quarter; the upper right quarter, and nothing of the other picture.
    assert tokens_at(Family(), both, coarse, alone, fine) == (3,)
    assert tokens_at(Family(), alone, fine, both, coarse) == (2, 3, 6, 7)
    assert tokens_at(Family(), alone, fine, alone, fine) == (10, 15)
    text = Query("s", 0, (), (), "What?")
    assert tokens_at(Family(), text, evidence_of("s#0", 0, 0), both, coarse) == ()
