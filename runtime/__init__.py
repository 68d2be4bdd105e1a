"""The ground floor: processes, files, options, errors, and the record of the environment."""
