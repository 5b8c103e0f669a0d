"""Measures disks with fio in a Linux guest."""
