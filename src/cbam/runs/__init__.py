"""Common to every long run.

`job` is a resumable run of named cells; `folder`, `rows` and `environment` are its files; `config` and `options` its
options; `progress` is its display; `pool` runs tasks in worker processes, and `launchers` on a cluster.
"""
