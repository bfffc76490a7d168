"""The Backint agent of SAP HANA: backs up what the database writes into pipes, and gives it back into pipes.

`directives` is the language of HANA's lists, `parameters` the file that says which vault, `crew` the processes that
move data, `catalogue` the points as HANA sees them, `functions` what HANA can ask for.
"""
