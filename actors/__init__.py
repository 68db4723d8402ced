"""Who works: one package per role, pure logic first, the Ray actor last and thin."""
