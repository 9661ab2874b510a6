"""Checks the offsets and lengths of a .tflite file, which is a FlatBuffer, before anything follows them."""

from __future__ import annotations

import struct

from edgecompress.errors import ModelError

# The fields of each table, by field number: the width of a scalar, *width for a vector of scalars (strings too),
# a table's name, or [name] for a vector of tables. Options are unions, of which only the outside is checked here.
_TABLES = {
    "Model": "4 [OperatorCode] [SubGraph] *1 [Buffer] *4 [Metadata] [SignatureDef] [Options] [Options]",
    "OperatorCode": "1 *1 4 4",
    "SubGraph": "[Tensor] *4 *4 [Operator] *1 4",
    "Tensor": "*4 1 4 *1 Quantization 1 Options *4 1 [Options] 4",
    "Quantization": "*4 *4 *4 *8 1 Options 4",
    "Operator": "4 *4 *4 1 Options *1 1 *1 *4 8 8 1 Options 4",
    "Buffer": "*1 8 8",
    "Metadata": "*1 4",
    "SignatureDef": "[TensorMap] [TensorMap] *1 *1 4",
    "TensorMap": "*1 4",
    "Options": "",
}
_SHARING = 8  # a vector that is used again counts so much less: at most that much more is read than there is
_FIELDS = {name: tuple(fields.split()) for name, fields in _TABLES.items()}


def verify_structure(data: bytes, *, where: object = None) -> None:
    """Checks that every table, vector and string lies inside the file, in time bounded by its size.

    Indices (of tensors, buffers, subgraphs) are values like any other and are not looked at.

    Args:
        data: Content of a file with the identifier TFL3.
        where: What to call the file in errors.

    Raises:
        ModelError: The file is truncated or damaged.
    """
    _Verifier(data, where).root("Model")


class _Verifier:
    """Follows every offset once; work and memory are bounded by the size of the file."""

    def __init__(self, data: bytes, where: object) -> None:
        self._data = data
        self._where = where
        # In a real file tables and vectors hardly overlap; one where they do could keep a reader busy for hours.
        self._budget = 2 * len(data) + 4096
        self._seen: set[int] = set()

    def root(self, kind: str) -> None:
        self._table(self._read("<I", 0)[0], kind)

    def _table(self, position: int, kind: str) -> None:
        vtable = position - self._read("<i", position)[0]
        vtable_size, size = self._read("<HH", vtable)
        fields = _FIELDS[kind]
        offsets = self._read(f"<{min(len(fields), max(0, vtable_size // 2 - 2))}H", vtable + 4)
        self._claim(position, size, cost=16 + size)
        for offset, field in zip(offsets, fields, strict=False):
            if offset:
                if offset + (int(field) if field.isdigit() else 4) > size:
                    raise self._damaged("a field lies outside its table")
                self._field(position + offset, field)

    def _field(self, position: int, field: str) -> None:
        if field.isdigit():
            return
        target = position + self._read("<I", position)[0]
        if field[0] not in "*[":
            self._table(target, field)
            return
        (length,) = self._read("<I", target)
        width = int(field[1:]) if field[0] == "*" else 4
        # Tensors of the same scales may share them (see flatbuffer.write_tree).
        again = field[0] == "*" and target in self._seen
        self._seen.add(target)
        self._claim(target + 4, length * width, cost=length * width // (_SHARING if again else 1))
        if field[0] == "[":
            for start in range(target + 4, target + 4 + 4 * length, 4):
                self._table(start + self._read("<I", start)[0], field[1:-1])

    def _read(self, form: str, position: int) -> tuple[int, ...]:
        if position < 0:
            raise self._damaged("an offset points before the start of the file")
        try:
            return struct.unpack_from(form, self._data, position)
        except struct.error:
            raise self._damaged("an offset points past the end of the file") from None

    def _claim(self, start: int, size: int, *, cost: int) -> None:
        self._budget -= cost
        if start + size > len(self._data):
            raise self._damaged("a length reaches past the end of the file")
        if self._budget < 0:
            raise self._damaged("its parts overlap")

    def _damaged(self, how: str) -> ModelError:
        return ModelError(
            f"truncated or damaged .tflite file: {how}", where=self._where, fix="copy or convert it again"
        )
