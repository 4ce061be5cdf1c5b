"""What every long run stands on.

`job` is a resumable run of named cells; `folder`, `rows` and `environment` what it leaves on the disk; `config` and
`options` what it was asked for; `progress` its display; `launchers` puts its cells on a cluster.
"""
