"What builds the site, measures, breaks on purpose, and explores. Nothing here is in the package."
from configparser import ConfigParser
from pathlib import Path


def settings():
    "What settings.ini says of the package."
    config = ConfigParser(delimiters=['='])
    config.read(Path(__file__).resolve().parents[1]/'settings.ini', encoding='utf-8')
    return config['DEFAULT']
