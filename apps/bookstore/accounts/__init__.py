"""Keeps the money: moves it from readers to the till."""
