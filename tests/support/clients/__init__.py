"""Programs that use the API as others wrote their clients, in an environment of their own; each prints what it got."""
