"""Every policy's schedule becomes its first rule."""

from django.db import migrations

SCHEDULE = ("cron", "every", "unit", "starts_on", "start_time")


def fill(apps, schema_editor):
    Policy, Rule = apps.get_model("policies", "Policy"), apps.get_model("policies", "Rule")
    Plan = apps.get_model("policies", "Plan")
    for policy in Policy.objects.all().iterator():
        rule = Rule.objects.create(policy=policy, position=1, **{name: getattr(policy, name) for name in SCHEDULE})
        Plan.objects.filter(policy=policy, next_run_at__isnull=False).update(next_rule=rule)


def give_back(apps, schema_editor):
    Policy, Rule = apps.get_model("policies", "Policy"), apps.get_model("policies", "Rule")
    for rule in Rule.objects.filter(type="backup").order_by("policy", "-position").iterator():
        Policy.objects.filter(pk=rule.policy_id).update(**{name: getattr(rule, name) for name in SCHEDULE})


class Migration(migrations.Migration):
    dependencies = [("policies", "0005_rules")]

    operations = [migrations.RunPython(fill, give_back)]
