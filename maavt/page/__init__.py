"""The parts of the report page: a module and a template for each of its sections, and what they share."""
