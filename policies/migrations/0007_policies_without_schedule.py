from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("policies", "0006_fill_rules")]

    operations = [
        migrations.RemoveField(
            model_name="policy",
            name="cron",
        ),
        migrations.RemoveField(
            model_name="policy",
            name="every",
        ),
        migrations.RemoveField(
            model_name="policy",
            name="start_time",
        ),
        migrations.RemoveField(
            model_name="policy",
            name="starts_on",
        ),
        migrations.RemoveField(
            model_name="policy",
            name="unit",
        ),
    ]
