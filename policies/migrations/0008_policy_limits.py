from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("policies", "0007_policies_without_schedule")]

    operations = [migrations.RenameField("policy", "options", "limits")]
