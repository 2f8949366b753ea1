"""Ray: a session, and the ranks of an engine on CPUs."""
