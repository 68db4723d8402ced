"""How weights travel from the learner to whoever runs them: one manifest, both ends of each transport."""
