"""The DynamoDB API by boto3: AWS itself, ScyllaDB Alternator and others that speak it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from engine.connections.rows import decode_item, encode_item
from engine.connections.tables import (
    FORMAT,
    RANGES_MAX,
    Denied,
    Described,
    Fault,
    Gone,
    Page,
    Range,
    Schema,
    Silent,
    patiently,
)
from engine.errors import ExtraMissing

PACKAGE = "boto3==1.44.5"
BATCH_ITEMS, BATCH_BYTES = 25, 8 << 20
RANGE_MIB = 256
_WRITE_TRIES = 9
_WAITS = 120
_CONNECTIONS = 16
_DENIED = frozenset(
    {
        *("UnrecognizedClientException", "InvalidSignatureException", "AccessDeniedException", "AccessDenied"),
        *("IncompleteSignatureException", "MissingAuthenticationTokenException", "ExpiredTokenException"),
        *("InvalidClientTokenId", "SignatureDoesNotMatch", "OptInRequired"),
    }
)
_LATER = frozenset(
    {
        *("ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"),
        *("InternalServerError", "ServiceUnavailable", "LimitExceededException", "ResourceInUseException"),
    }
)


class DynamoDb(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the service: a region, its address unless it is AWS, and keys that never show.

    What fails for a moment or is throttled is asked `tries` times, with pauses that grow to 20 s.
    """

    region: str
    access_key: str
    secret_key: str
    token: str = ""
    endpoint: str = ""
    timeout_s: float = 30
    tries: int = 6

    def __repr__(self) -> str:
        return f"DynamoDb({self.region!r} at {self.endpoint or 'AWS'!r})"


class DynamoDbService:
    """The tables of one account and region (the Service port). Threads may share it."""

    def __init__(self, place: DynamoDb, *, range_mib: int = RANGE_MIB, consistent: bool = True) -> None:
        self._range_mib, self._consistent = range_mib, consistent
        self._where = place.endpoint or f"DynamoDB in {place.region}"
        self._client = _connect(place)

    @property
    def batch(self) -> tuple[int, int]:
        return BATCH_ITEMS, BATCH_BYTES

    def tables(self) -> list[str]:
        with self._translated():
            pages = self._client.get_paginator("list_tables").paginate()
            return sorted(name for page in pages for name in page["TableNames"])

    def describe(self, table: str) -> Described:
        """Return what CreateTable takes (`create`), and what is set when the items are there (`after`)."""
        found = self._table(table)
        after: dict[str, Any] = {}
        if found.get("StreamSpecification", {}).get("StreamEnabled"):
            after["StreamSpecification"] = found["StreamSpecification"]
        if found.get("DeletionProtectionEnabled"):
            after["DeletionProtectionEnabled"] = True
        unread = []
        for what, read in (("expiry", self._expiry), ("tags", self._tags)):
            try:
                after |= read(table, found)
            except (Denied, _Unknown) as error:
                unread.append(f"its {what}: {error}")
        schema = {
            "service": "dynamodb",
            "format": FORMAT,
            "table": table,
            "create": _creatable(found),
            "after": after,
        }
        made_ns = int(found["CreationDateTime"].timestamp() * 1000) * 1_000_000
        return Described(schema, found.get("TableId", ""), made_ns, tuple(unread))

    def _table(self, table: str) -> dict[str, Any]:
        with self._translated():
            found: dict[str, Any] = self._client.describe_table(TableName=table)["Table"]
        return found

    def _expiry(self, table: str, found: dict[str, Any]) -> dict[str, Any]:
        with self._translated():
            expiry = self._client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
        if expiry.get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
            return {}
        return {"TimeToLiveSpecification": {"Enabled": True, "AttributeName": expiry["AttributeName"]}}

    def _tags(self, table: str, found: dict[str, Any]) -> dict[str, Any]:
        with self._translated():
            pages = self._client.get_paginator("list_tags_of_resource").paginate(ResourceArn=found["TableArn"])
            tags = [tag for page in pages for tag in page["Tags"] if not tag["Key"].startswith("aws:")]
        return {"Tags": sorted(tags, key=lambda tag: str(tag["Key"]))} if tags else {}

    def ranges(self, table: str, schema: Schema) -> list[Range]:
        """Cut into so many segments, a power of two, that each has about RANGE_MIB; sizes change twice a day."""
        size = self._table(table).get("TableSizeBytes", 0)
        total = 1
        while total < RANGES_MAX and size / total > self._range_mib << 20:
            total *= 2
        return [Range(number, total) for number in range(1, total + 1)]

    def pages(self, table: str, schema: Schema, part: Range) -> Iterator[Page]:
        """Yield the items of a segment in the service's order, which is the same for the same items."""
        wanted: dict[str, Any] = {"TableName": table, "ConsistentRead": self._consistent}
        if part.total > 1:
            wanted |= {"Segment": part.number - 1, "TotalSegments": part.total}
        following: dict[str, Any] | None = {}
        while following is not None:
            with self._translated():
                answer = self._client.scan(**wanted, ReturnConsumedCapacity="TOTAL", **following)
                items = answer["Items"]
            last = answer.get("LastEvaluatedKey")
            following = {"ExclusiveStartKey": last} if last else None
            units = answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0)
            yield Page([encode_item(item) for item in items], units)

    def holds_rows(self, table: str) -> bool:
        try:
            with self._translated():
                return bool(self._client.scan(TableName=table, ConsistentRead=True, Limit=1)["Items"])
        except Gone:
            return False

    def create(self, table: str, schema: Schema) -> bool:
        """Make the table with all of its indexes: those of the items' own partition can't come later."""
        try:
            with self._translated():
                self._client.create_table(TableName=table, **schema["create"])
            made = True
        except _Exists:
            if self._table(table)["KeySchema"] != schema["create"]["KeySchema"]:
                raise Fault(f"the table {table} is there and has another key") from None
            made = False
        self._wait(table)
        return made

    def _wait(self, table: str) -> None:
        def active() -> bool:
            found = self._table(table)
            indexes = found.get("GlobalSecondaryIndexes", [])
            return found["TableStatus"] == "ACTIVE" and all(one["IndexStatus"] == "ACTIVE" for one in indexes)

        if not patiently(active, tries=_WAITS, first_s=0.05, most_s=5):
            raise Silent(f"the table {table} is still not active")

    def put(self, table: str, schema: Schema, lines: list[bytes]) -> list[str]:
        """Write items, sending again what the service leaves unprocessed; one that it refuses is found by itself."""
        requests = [{"PutRequest": {"Item": decode_item(line)}} for line in lines]
        try:
            self._put(table, requests)
        except _Invalid as error:
            if len(requests) == 1:
                return [str(error)]
            # The whole batch was refused.
            return [said for line in lines for said in self.put(table, schema, [line])]
        return []

    def _put(self, table: str, requests: list[dict[str, Any]]) -> None:
        left = requests

        def write() -> bool:
            nonlocal left
            with self._translated():
                unprocessed = self._client.batch_write_item(RequestItems={table: left})["UnprocessedItems"]
            left = unprocessed.get(table, [])
            return not left

        if not patiently(write, tries=_WRITE_TRIES, first_s=0.1, most_s=15):
            raise Silent(f"the table {table} has taken {len(left)} items in none of {_WRITE_TRIES} tries")

    def settle(self, table: str, schema: Schema) -> list[str]:
        """Set expiry, tags, stream and protection, each when the one before took effect."""
        after, missed = schema["after"], []
        for what, key in (
            ("its expiry", "TimeToLiveSpecification"),
            ("its tags", "Tags"),
            ("its stream", "StreamSpecification"),
            ("its protection from deletion", "DeletionProtectionEnabled"),
        ):
            if key not in after:
                continue
            try:
                self._set(table, key, after[key])
                self._wait(table)
            except (Fault, _Exists) as error:
                if isinstance(error, Silent):
                    raise
                missed.append(f"{what}: {error}")
        return missed

    def _set(self, table: str, key: str, value: Any) -> None:
        if key == "Tags":
            arn = self._table(table)["TableArn"]
            with self._translated():
                self._client.tag_resource(ResourceArn=arn, Tags=value)
        elif key == "TimeToLiveSpecification":
            with self._translated():
                self._client.update_time_to_live(TableName=table, **{key: value})
        else:
            with self._translated():
                self._client.update_table(TableName=table, **{key: value})

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise _fault(error.response) from error
        except KeyError as error:
            # An answer without a body counts as success to boto3.
            raise Silent(f"{self._where} left {error} out of its answer: it went away, or is no DynamoDB") from error
        except (BotoCoreError, OSError) as error:
            raise Silent(f"{self._where} does not answer: {_short(str(error))}") from error


class _Exists(Fault):
    """The table is there."""


class _Unknown(Fault):
    """This service does not know the call."""


class _Invalid(Fault):
    """What was sent is against the service's rules."""


def _fault(response: dict[str, Any]) -> Fault:
    code = response.get("Error", {}).get("Code", "")
    text = _short(f"{response.get('Error', {}).get('Message') or 'no reason given'} ({code})")
    if code == "ResourceNotFoundException":
        return Gone(text)
    if code == "ResourceInUseException":
        return _Exists(text)
    if code in _DENIED:
        return Denied(text)
    if code.startswith("UnknownOperation"):
        return _Unknown(text)
    if code in ("ValidationException", "ItemCollectionSizeLimitExceededException"):
        return _Invalid(text)
    if code in _LATER or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return Silent(text)
    return Fault(text)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _creatable(found: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of CreateTable that make this table again, in an order that does not change."""
    on_demand = found.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST"
    wanted: dict[str, Any] = {
        "AttributeDefinitions": sorted(found["AttributeDefinitions"], key=lambda one: str(one["AttributeName"])),
        "KeySchema": found["KeySchema"],
        "BillingMode": "PAY_PER_REQUEST" if on_demand else "PROVISIONED",
    }
    if not on_demand:
        wanted["ProvisionedThroughput"] = _throughput(found)
    for kind in ("LocalSecondaryIndexes", "GlobalSecondaryIndexes"):
        if indexes := sorted(found.get(kind, []), key=lambda one: str(one["IndexName"])):
            wanted[kind] = [
                {field: index[field] for field in ("IndexName", "KeySchema", "Projection")}
                | ({"ProvisionedThroughput": _throughput(index)} if kind[0] == "G" and not on_demand else {})
                for index in indexes
            ]
    if table_class := found.get("TableClassSummary", {}).get("TableClass"):
        wanted["TableClass"] = table_class
    return wanted


def _throughput(found: dict[str, Any]) -> dict[str, int]:
    return {field: found["ProvisionedThroughput"][field] for field in ("ReadCapacityUnits", "WriteCapacityUnits")}


def _connect(place: DynamoDb) -> Any:
    """Return a client that retries. Raises ExtraMissing, Fault."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ExtraMissing(f"DynamoDB needs its client: pip install {PACKAGE}") from error
    if not place.access_key or not place.secret_key:
        # Without them boto3 would use whatever keys this machine has.
        raise Fault("DynamoDB needs an access key and a secret key")
    config = Config(
        connect_timeout=min(place.timeout_s, 10),
        read_timeout=place.timeout_s,
        retries={"mode": "standard", "total_max_attempts": place.tries},
        max_pool_connections=_CONNECTIONS,
    )
    session = boto3.session.Session(
        aws_access_key_id=place.access_key,
        aws_secret_access_key=place.secret_key,
        aws_session_token=place.token or None,
        region_name=place.region,
    )
    try:
        return session.client("dynamodb", endpoint_url=place.endpoint or None, config=config)
    except ValueError as error:
        raise Fault(f"{place.endpoint!r} is no address of a service: give it with http:// or https://") from error
