"""What stands for content: labels for `setLabels`, a request for its request id, a policy for `setIamPolicy`."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.errors import PolicyChanged
from imageopsd.model.image import Image, ImagePatch, RawDisk, label_fingerprint, labelled
from imageopsd.model.policy import Binding, Policy, replaced
from imageopsd.model.requests import InsertImage, LabelMachineImage, PatchImage

KEYS = st.text("ab-_1", max_size=3)
LABELS = st.dictionaries(KEYS, KEYS, max_size=4)


@given(LABELS, LABELS)
def test_labels_have_the_same_fingerprint_exactly_when_they_are_the_same(ours: dict[str, str], theirs: dict[str, str]):
    assert (label_fingerprint(ours) == label_fingerprint(theirs)) == (ours == theirs)


@given(LABELS, st.randoms())
def test_the_order_in_which_labels_were_set_does_not_show(labels: dict[str, str], random) -> None:
    items = list(labels.items())
    random.shuffle(items)
    assert label_fingerprint(dict(items)) == label_fingerprint(labels)


@given(LABELS, LABELS)
def test_a_labelled_image_says_what_its_labels_are_by_fingerprint(
    first: dict[str, str], second: dict[str, str]
) -> None:
    image = labelled(labelled(Image(name="i"), first), second)
    assert (image.labels or {}, image.label_fingerprint) == (second, label_fingerprint(second))


TEXTS = st.none() | st.sampled_from(["a", "b", "ab"])
IMAGES = st.builds(
    Image,
    name=TEXTS,
    family=TEXTS,
    description=TEXTS,
    labels=st.none() | LABELS.filter(bool),
    raw_disk=st.builds(RawDisk, source=TEXTS),
)
INSERTS = st.builds(
    InsertImage,
    project=st.sampled_from(["p", "q"]),
    request_id=TEXTS,
    image=IMAGES,
    force_create=st.booleans(),
)
PATCHES = st.builds(
    PatchImage,
    project=st.just("p"),
    image=st.sampled_from(["i", "j"]),
    patch=st.builds(ImagePatch, family=st.just(msgspec.UNSET) | st.sampled_from(["", "a"])),
)
REQUESTS = INSERTS | PATCHES


def test_who_traces_a_request_does_not_make_it_another() -> None:
    request = InsertImage(project="p", image=Image(name="i"))
    traced = msgspec.structs.replace(request, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert request.fingerprint() == traced.fingerprint()


@given(REQUESTS, REQUESTS)
def test_requests_have_the_same_fingerprint_exactly_when_they_ask_for_the_same(ours, theirs) -> None:
    def asked(request):
        return type(request), msgspec.structs.replace(request, request_id=None)

    assert (ours.fingerprint() == theirs.fingerprint()) == (asked(ours) == asked(theirs))


LABELLED = st.builds(
    LabelMachineImage,
    project=st.just("p"),
    machine_image=st.sampled_from(["i", "7", "j"]),
    labels=st.just({}),
    label_fingerprint=st.sampled_from(["a", "b"]),
)


@given(LABELLED, LABELLED)
def test_a_request_repeats_another_that_names_the_same_target_by_its_other_name(first, again) -> None:
    names = {"i": ("i", "7"), "7": ("i", "7"), "j": ("j", "8")}[first.target]
    same = again.target in names and again.label_fingerprint == first.label_fingerprint
    assert again.repeats_one(first.fingerprint(), names) == same


@given(INSERTS, INSERTS)
def test_what_makes_something_has_one_name_for_it(first, again) -> None:
    same = again.fingerprint() == first.fingerprint()
    assert again.repeats_one(first.fingerprint(), (first.target, "7")) == same


BINDINGS = st.lists(st.builds(Binding, role=st.sampled_from(["roles/a", "roles/b"])), max_size=3).map(tuple)


@given(BINDINGS, BINDINGS)
def test_a_policy_changes_its_etag_exactly_when_it_changes(first, second) -> None:
    now = replaced(Policy(), Policy(bindings=first))
    then = replaced(now, Policy(bindings=second, etag=now.etag))
    assert (now.etag == then.etag) == (first == second)
    if first != second:
        with pytest.raises(PolicyChanged):
            replaced(then, Policy(bindings=first, etag=now.etag))
