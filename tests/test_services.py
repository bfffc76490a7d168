"""The servers that other tests rely on are real: they answer, keep data, and refuse who doesn't know the secret."""

import dataclasses
import datetime as dt
import io

import psycopg
import pytest
import redis
from minio.commonconfig import COMPLIANCE
from minio.error import S3Error
from minio.retention import Retention
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.services import s3_client


def test_redis_answers_to_its_password(redis_service):
    with redis.Redis.from_url(redis_service.url) as client:
        assert client.ping()


def test_redis_refuses_a_wrong_password(redis_service):
    once = Retry(NoBackoff(), 0)
    with redis.Redis(host=redis_service.host, port=redis_service.port, password="wrong", retry=once) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()


def test_redis_keeps_messages_on_disk_and_never_evicts_one(redis_service):
    with redis.Redis.from_url(redis_service.url, decode_responses=True) as client:
        settings = client.config_get("*")
    assert (settings["appendonly"], settings["maxmemory-policy"]) == ("yes", "noeviction")


def test_postgres_answers(postgres_service):
    with psycopg.connect(postgres_service.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_postgres_refuses_a_wrong_password(postgres_service):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_service.url.replace(postgres_service.password, "wrong"))


def test_s3_keeps_what_is_put(s3_service, s3_bucket):
    client, bucket = s3_client(s3_service), s3_bucket(s3_service)
    client.put_object(bucket, "a/b", io.BytesIO(b"hello"), 5)
    answer = client.get_object(bucket, "a/b")
    assert answer.read() == b"hello"
    answer.release_conn()
    assert [one.object_name for one in client.list_objects(bucket, recursive=True)] == ["a/b"]


def test_s3_refuses_a_wrong_secret(s3_service, s3_bucket):
    bucket = s3_bucket(s3_service)
    stranger = s3_client(dataclasses.replace(s3_service, secret_key="wrong-secret"))
    with pytest.raises(S3Error) as refusal:
        list(stranger.list_objects(bucket))
    # Ceph tries its other ways to authenticate, then says no in general.
    assert refusal.value.code in {"SignatureDoesNotMatch", "AccessDenied"}


def test_s3_keeps_a_locked_version_from_its_owner(s3_service, s3_bucket):
    client, bucket = s3_client(s3_service), s3_bucket(s3_service, object_lock=True)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
    written = client.put_object(bucket, "a", io.BytesIO(b"x"), 1, retention=Retention(COMPLIANCE, until))
    with pytest.raises(S3Error):
        client.remove_object(bucket, "a", version_id=written.version_id)


def test_a_bucket_goes_away_with_its_test(minio_service, s3_bucket, request):
    bucket = s3_bucket(minio_service)
    assert s3_client(minio_service).bucket_exists(bucket)
    assert request.node.get_closest_marker("services")
