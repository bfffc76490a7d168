"""The audit trail becomes append-only and chained; the lines that are there are chained as they stand."""

import datetime as dt
import hashlib
import json

import django.db.models.deletion
from django.db import migrations, models

from accounts import guards

GENESIS = "0" * 64


def keep_names(apps, schema_editor):
    """Put the accounts' names beside their ids."""
    events = apps.get_model("accounts", "Event")
    for pk, name in apps.get_model("accounts", "Account").objects.values_list("pk", "name"):
        events.objects.filter(account_id=pk).update(account_name=name)


def chain(apps, schema_editor):
    """Link all events in the order in which they were stored; the same text as accounts.chain digests."""
    events, links = apps.get_model("accounts", "Event"), apps.get_model("accounts", "Link")
    head, _ = apps.get_model("accounts", "ChainHead").objects.get_or_create(pk=1)
    batch = []
    for event in events.objects.order_by("pk").iterator():
        head.sequence += 1
        row = {
            "sequence": head.sequence,
            "event": event.pk,
            "happened_at": event.happened_at.astimezone(dt.UTC).isoformat(timespec="microseconds"),
            "account_id": str(event.account_id) if event.account_id else None,
            "account_name": event.account_name,
            "user_id": event.user_id,
            "user_name": event.user_name,
            "address": event.address,
            "action": event.action,
            "outcome": event.outcome,
            "object_type": event.object_type,
            "object_id": event.object_id,
            "object_name": event.object_name,
            "detail": event.detail,
        }
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        head.digest = hashlib.sha256(f"{head.digest}\n{text}".encode()).hexdigest()
        head.swept_to = event.pk
        batch.append(links(sequence=head.sequence, event_id=event.pk, digest=head.digest))
        if len(batch) == 1000:
            links.objects.bulk_create(batch)
            batch = []
    links.objects.bulk_create(batch)
    head.save()


def free(apps, schema_editor):
    """Take the triggers away."""
    guards.remove(schema_editor.connection)


class Migration(migrations.Migration):
    # PostgreSQL changes no table that has pending triggers of the same transaction.
    atomic = False

    dependencies = [
        ("accounts", "0001_initial"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="event", name="event_by_account"),
        migrations.AlterField(
            model_name="event", name="account", field=models.UUIDField(null=True, db_column="account_id")
        ),
        migrations.RenameField(model_name="event", old_name="account", new_name="account_id"),
        migrations.AlterField(model_name="event", name="account_id", field=models.UUIDField(null=True)),
        migrations.AlterField(
            model_name="event", name="user", field=models.BigIntegerField(null=True, db_column="user_id")
        ),
        migrations.RenameField(model_name="event", old_name="user", new_name="user_id"),
        migrations.AlterField(model_name="event", name="user_id", field=models.BigIntegerField(null=True)),
        migrations.AlterField(model_name="event", name="object_id", field=models.CharField(blank=True, max_length=64)),
        migrations.AddField(
            model_name="event", name="account_name", field=models.CharField(blank=True, max_length=64, default="")
        ),
        migrations.AlterField(
            model_name="event", name="account_name", field=models.CharField(blank=True, max_length=64)
        ),
        migrations.AddField(
            model_name="event",
            name="outcome",
            field=models.CharField(choices=[("done", "Done"), ("refused", "Refused")], default="done", max_length=8),
        ),
        migrations.AddIndex(
            model_name="event",
            index=models.Index(fields=["account_id", "-happened_at"], name="event_by_account"),
        ),
        migrations.AddIndex(
            model_name="event",
            index=models.Index(fields=["-happened_at"], name="event_by_time"),
        ),
        migrations.CreateModel(
            name="Link",
            fields=[
                ("sequence", models.BigIntegerField(primary_key=True, serialize=False)),
                ("digest", models.CharField(max_length=64)),
                (
                    "event",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="link",
                        to="accounts.event",
                    ),
                ),
            ],
            options={"ordering": ["sequence"]},
        ),
        migrations.CreateModel(
            name="ChainHead",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sequence", models.BigIntegerField(default=0)),
                ("digest", models.CharField(default=GENESIS, max_length=64)),
                ("swept_to", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.RunPython(keep_names, migrations.RunPython.noop),
        migrations.RunPython(chain, migrations.RunPython.noop),
        # Put in place after every migration (accounts.guards); to go back, the tables must be free of them.
        migrations.RunPython(migrations.RunPython.noop, free),
    ]
