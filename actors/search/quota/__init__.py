"""Who may send a request to an endpoint, and when: rate, concurrency, budgets, circuit; shared by jobs and services."""
