"""Limits, what counts against them, and how a refusal reads."""

import msgspec
import pytest
from tests.contract.validate import problems

from imageopsd.model.image import Image, RawDisk
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.quota import Limit, Metric, Quotas, Reach, Usage, check_limits, refusal, source_of
from imageopsd.model.resource import Resource
from imageopsd.model.sources import server_of

LINK = "https://www.googleapis.com/compute/v1/"


def limit(project: str = "*", metric: str = Metric.IMAGES, number: int = 10, **more: object) -> Limit:
    return msgspec.convert({"project": project, "metric": metric, "limit": number, **more}, Limit)


@pytest.mark.parametrize("metric", Metric)
def test_a_refusal_has_the_four_details_of_the_contract(metric: Metric) -> None:
    source = "projects/p/zones/z/disks/d" if metric is Metric.INSERTS else ""
    entry = refusal(metric, limit(metric=metric, future_limit=20, rollout_status="IN_PROGRESS"), source=source).entry
    plain = msgspec.json.decode(msgspec.json.encode(entry))
    assert list(problems("Operation", {"kind": "compute#operation", "error": {"errors": [plain]}})) == []
    assert [name for detail in plain["errorDetails"] for name in detail] == [
        "quotaInfo", "errorInfo", "help", "localizedMessage",
    ]  # fmt: skip
    assert plain["errorDetails"][0]["quotaInfo"].keys() == {
        "metricName", "limitName", "dimensions", "limit", "futureLimit", "rolloutStatus",
    }  # fmt: skip


def test_the_names_are_those_that_clients_know() -> None:
    assert [(metric.compute_name, metric.limit_name) for metric in Metric] == [
        ("IMAGES", "IMAGES-per-project"),
        ("IMAGE_GB", "IMAGE-GB-per-project"),
        ("STORED_BYTES", "STORED-BYTES-per-project"),
        ("OPERATIONS_IN_FLIGHT", "OPERATIONS-IN-FLIGHT-per-project"),
        ("INSERTS_PER_SOURCE", "INSERTS-PER-SOURCE-per-project-source-hour"),
    ]


@pytest.mark.parametrize(
    ("planned", "told"),
    [
        ({}, {}),
        ({"future_limit": 20}, {"futureLimit": 20.0, "rolloutStatus": "ROLLOUT_STATUS_UNSPECIFIED"}),
        (
            {"future_limit": 0, "rollout_status": "IN_PROGRESS"},
            {"futureLimit": 0.0, "rolloutStatus": "IN_PROGRESS"},
        ),
    ],
    ids=["nothing", "not begun", "under way"],
)
def test_a_planned_change_is_told_and_only_then(planned: dict[str, object], told: dict[str, object]) -> None:
    plain = msgspec.to_builtins(refusal(Metric.IMAGES, limit(**planned)).entry.error_details[0].quota_info)
    assert {name: plain[name] for name in ("futureLimit", "rolloutStatus") if name in plain} == told


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"project": "No Project"}, "project: 'No Project' is no project id"),
        ({"metric": "imageopsd/images"}, "metric: 'imageopsd/images' is not known. Expected one of compute"),
        ({"limit": -2}, "Expected `int` >= -1 - at `$.limit`"),
        ({"limit": 2.5}, "Expected `int`"),
        ({"limit": 2**53 + 1}, "Expected `int` <= 9007199254740992"),
        ({"rollout_status": "IN_PROGRESS"}, "rollout_status: There is no future_limit"),
        ({"future_limit": 1, "rollout_status": "DONE"}, "Invalid enum value 'DONE' - at `$.rollout_status`"),
        ({"lmit": 1}, "unknown field `lmit`"),
    ],
)
def test_a_bad_limit_is_refused_with_the_field(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"project": "*", "metric": Metric.IMAGES.value, "limit": 1, **fields}, Limit)
    assert problem in str(refused.value)


def test_two_limits_of_one_thing_contradict_each_other() -> None:
    check_limits([limit(), limit("p"), limit(metric=Metric.IMAGE_GB)])
    with pytest.raises(ValueError, match=r"two limits of 'compute.googleapis.com/images' for project 'p'$"):
        check_limits([limit("p"), limit(), limit("p", number=3)])


def test_the_fullest_project_counts_and_one_without_a_limit_does_not() -> None:
    quotas = Quotas([limit(number=10), limit("small", number=4), limit("free", number=-1),
                     limit("none", metric=Metric.IMAGE_GB, number=0)])  # fmt: skip
    ledger = [
        Usage("large", Metric.IMAGES, 3, 2),
        Usage("small", Metric.IMAGES, 1, 2),
        Usage("free", Metric.IMAGES, 1000),
        Usage("none", Metric.IMAGE_GB),
        Usage("large", Metric.STORED_BYTES, 7),
    ]
    assert quotas.reached(ledger) == [
        Reach("none", Metric.IMAGE_GB, 0, 0),
        Reach("small", Metric.IMAGES, 3, 4),
        Reach("large", Metric.IMAGES, 5, 10),
        Reach("*", Metric.IMAGES, 0, 10),
    ]


@pytest.mark.parametrize(
    ("resource", "source"),
    [
        (Image(source_disk="zones/z/disks/d"), "projects/p/zones/z/disks/d"),
        (Image(source_disk=f"{LINK}projects/q/zones/z/disks/d"), "projects/q/zones/z/disks/d"),
        (Image(source_disk="elsewhere"), "elsewhere"),
        (Image(source_snapshot="global/snapshots/s"), "projects/p/global/snapshots/s"),
        (Image(source_image=f"{LINK}projects/q/global/images/i"), "projects/q/global/images/i"),
        (Image(raw_disk=RawDisk(source="https://me:secret@h/d?sig=secret")), "https://h/d"),
        (MachineImage(source_instance="zones/z/instances/i"), "projects/p/zones/z/instances/i"),
    ],
)
def test_a_source_has_one_name_however_it_is_written_and_no_secret(resource: Resource, source: str) -> None:
    assert source_of(resource, "p") == source


SPELLINGS = {
    "gs://b/a o": [
        "GS://b/a o",
        "https://storage.googleapis.com/b/a%20o",
        "http://storage.cloud.google.com/b/a%20o?authuser=0",
        "https://b.storage.googleapis.com/a%20%6f",
        "https://www.googleapis.com/storage/v1/b/b/o/a%20o?alt=media",
        "https://STORAGE.googleapis.com.:443/download/storage/v1/b/b/o/a%20o",
    ],
    "https://h.example/d/a%20b%2Fc": [
        "HTTPS://H.Example/d/a%20b%2fc",
        "https://h.example:443/d/a b%2Fc",
        "https://h.example./d/a%20b%2Fc#f",
        "https://h.example/%64/%61%20b%2Fc?sig=1",
        "https://user:secret@h.example/x/.././d//%2e/a%20b%2Fc",
    ],
    "http://h.example:443/": ["http://h.example:0443", "http://H.example.:443/"],
    "https://xn--bcher-kva.example/i": ["https://bücher.example/i", "https://B\u00dcCHER\u3002example/i"],
    "https://[2001:db8::1]/i": ["https://[2001:DB8:0:0::1]:443/i"],
    "file:///srv/a%20b": ["file:///srv/./a b", "file://localhost/srv/a%20b", "file:////srv//%61%20b", "FILE:/srv/a b"],
}


@pytest.mark.parametrize(("source", "spelling"), [(s, w) for s, all_of in SPELLINGS.items() for w in (s, *all_of)])
def test_a_place_is_counted_as_one_however_it_is_spelt(source: str, spelling: str) -> None:
    assert source_of(Image(raw_disk=RawDisk(source=spelling)), "p") == source


def test_two_places_stay_two() -> None:
    urls = ["https://h/a", "https://h/b", "https://h/a/", "https://h:8443/a", "http://h/a", "gs://h/a", "file:///h/a",
            "https://h/A", "https://h/a%2Fb", "https://h/a/b", "https://[broken"]  # fmt: skip
    assert len({source_of(Image(raw_disk=RawDisk(source=url)), "p") for url in urls}) == len(urls)


@pytest.mark.parametrize("url", ["https://h.example/i", "http://H.EXAMPLE.:80/i", "https://u@h.example.:8443/i"])
def test_a_server_is_the_same_however_it_is_spelt(url: str) -> None:
    assert (server_of(url), server_of("file:///i"), server_of("gs://b/i")) == ("h.example", None, None)
