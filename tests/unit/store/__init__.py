"""The database of a home: records, migrations, damage, full disks."""
