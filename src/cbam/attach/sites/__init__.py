"""Where attention goes: one finder for each kind of site, and the language in which users name sites."""
