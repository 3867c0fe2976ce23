"""Everything that is kept in the lease's Redis, and the Lua scripts that change it.

=================  ==========================================================================================
key (``keys``)     modules
=================  ==========================================================================================
``lease``          ``lease`` (values), ``lease_store`` (commands)
``ledger``         ``ledger`` (rows, notes), ``shadow`` (copy in memory), ``cluster_pause``, ``entry_pauses``
``journal``        ``journal``
``members``        ``membership``
``requests``       ``request_queue``, also ``progress`` and ``answer:…``
``presence:…``     ``presence``
``busy``           ``busy_entries``
=================  ==========================================================================================

``connections`` leads to the server: ``redis_urls`` reads its URL and ``name_resolution`` bounds the lookup of its name.
``scripts`` runs a script of the folder ``lua`` and decodes its answer, ``stored_values`` checks what was stored,
``redis_errors`` maps errors, and ``server_facts`` judges whether the server may lose data.
"""
