"""Linear algebra that MLX has: inverse, determinant, solve, Cholesky, eigenvalues, singular values, QR.

MLX computes these on the CPU only (``stream=mx.cpu``) and, but for eigenvalues and singular values, for real matrices.
"""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx, prod
from mlxport.graph.lower.helpers import linalg as helper
from mlxport.graph.lower.ops.casts import cast
from mlxport.graph.lower.ops.common import accurate, is_complex, reduced
from mlxport.graph.lower.ops.indexing import empty
from mlxport.graph.lower.ops.views import reshaped
from mlxport.graph.lower.registry import call, op, refuse

linalg = mx.linalg
Pair = tuple[Expr, Expr]


def real(*arrays: Expr) -> None:
    """Refuse complex matrices."""
    refuse(any(map(is_complex, arrays)), "MLX decomposes real matrices only")


def no_info(matrix: Expr) -> Expr:
    """Zeros for "no error": MLX raises where torch gives a positive number."""
    return mx.zeros(matrix.shape[:-2], dtype=mx.int32)


@op("aten.linalg_inv.default", "aten.inverse.default")
def inv(A: Expr | None = None, self: Expr | None = None) -> Expr:  # noqa: N803
    """``mx.linalg.inv``."""
    matrix = A if A is not None else self
    assert matrix is not None
    real(matrix)
    return matrix if empty(matrix) else linalg.inv(matrix, stream=mx.cpu)


@op("aten.linalg_tensorinv.default")
def tensorinv(self: Expr, ind: int = 2) -> Expr:
    """The inverse of the matrix that the first ``ind`` axes and the others make."""
    count = prod(self.shape[:ind])
    return reshaped(inv(reshaped(self, (count, -1))), (*self.shape[ind:], *self.shape[:ind]))


@op("aten.linalg_inv_ex.default")
def inv_ex(A: Expr, check_errors: bool = False) -> Pair:  # noqa: N803
    """``mx.linalg.inv``, which raises itself if a matrix is singular."""
    return inv(A), no_info(A)


@op("aten.linalg_det.default", "aten.det.default")
def det(A: Expr | None = None, self: Expr | None = None) -> Expr:  # noqa: N803
    """``mx.linalg.det``."""
    matrix = A if A is not None else self
    assert matrix is not None
    real(matrix)
    if empty(matrix):
        return mx.ones(matrix.shape[:-2])
    return linalg.det(matrix, stream=mx.cpu)


@op("aten.linalg_slogdet.default", "aten.slogdet.default")
def slogdet(A: Expr | None = None, self: Expr | None = None) -> Any:  # noqa: N803
    """``mx.linalg.slogdet``: sign and logarithm of the size of the determinant."""
    matrix = A if A is not None else self
    assert matrix is not None
    real(matrix)
    if empty(matrix):
        return mx.ones(matrix.shape[:-2]), mx.zeros(matrix.shape[:-2])
    return linalg.slogdet(matrix, stream=mx.cpu)


@op("aten._linalg_slogdet.default")
def slogdet_and_factors(A: Expr) -> Any:  # noqa: N803
    """``mx.linalg.slogdet``; the factors serve the backward pass."""
    found = slogdet(A)
    return found[0], found[1], None, None


@op("aten.logdet.default")
def logdet(self: Expr) -> Expr:
    """``log(det(x))``, NaN for a negative determinant."""
    real(self)
    return mx.zeros(self.shape[:-2]) if empty(self) else call(helper.logdet, self)


@op("aten.linalg_solve.default")
def solve(A: Expr, B: Expr, left: bool = True) -> Expr:  # noqa: N803
    """X of ``A @ X = B``, or of ``X @ A = B``."""
    real(A, B)
    if empty(A) or empty(B):
        return B if B.ndim >= A.ndim else mx.broadcast_to(B, A.shape[:-1])
    if left and A.ndim == B.ndim == 2:
        return linalg.solve(A, B, stream=mx.cpu)
    return call(helper.solve, A, B, **({} if left else {"left": False}))


@op("aten.linalg_solve_ex.default")
def solve_ex(A: Expr, B: Expr, left: bool = True, check_errors: bool = False) -> Pair:  # noqa: N803
    """``linalg.solve``, which raises itself if a matrix is singular."""
    return solve(A, B, left), no_info(A)


@op("aten.linalg_solve_triangular.default")
def solve_triangular(self: Expr, B: Expr, upper: bool, left: bool = True, unitriangular: bool = False) -> Expr:  # noqa: N803
    """X of ``A @ X = B`` with a triangular A; what lies in the other triangle is ignored."""
    real(self, B)
    if empty(self) or empty(B):
        return mx.zeros(solution_shape(self, B, left), dtype=B.dtype)
    options = {"upper": upper, "left": left, "unitriangular": unitriangular}
    usual = {"upper": False, "left": True, "unitriangular": False}
    return call(helper.solve_triangular, self, B, **{k: v for k, v in options.items() if v != usual[k]})


def solution_shape(a: Expr, b: Expr, left: bool) -> tuple[int, ...]:
    """Shape of the solution of a system with matrices ``a`` and right sides ``b``."""
    batch = [*a.shape[:-2]], [*b.shape[:-2]]
    length = max(map(len, batch))
    ours, theirs = ([1] * (length - len(sizes)) + sizes for sizes in batch)
    return (*(q if p == 1 else p for p, q in zip(ours, theirs, strict=True)), *b.shape[-2:])


@op("aten.triangular_solve.default")
def triangular_solve(
    self: Expr,
    A: Expr,  # noqa: N803
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
) -> Pair:
    """X of ``A @ X = B``, or of ``A.T @ X = B``, and A itself."""
    matrix = A.swapaxes(-1, -2) if transpose else A
    return solve_triangular(matrix, self, upper != transpose, unitriangular=unitriangular), A


@op("aten.linalg_cholesky.default", "aten.cholesky.default")
def cholesky(self: Expr, upper: bool = False) -> Expr:
    """``mx.linalg.cholesky``."""
    real(self)
    if empty(self):
        return self
    return linalg.cholesky(self, **({"upper": True} if upper else {}), stream=mx.cpu)


@op("aten.linalg_cholesky_ex.default")
def cholesky_ex(self: Expr, upper: bool = False, check_errors: bool = False) -> Pair:
    """``mx.linalg.cholesky``, which raises itself if a matrix is not positive definite."""
    return cholesky(self, upper), no_info(self)


@op("aten.cholesky_inverse.default")
def cholesky_inverse(self: Expr, upper: bool = False) -> Expr:
    """The inverse of the matrix with the Cholesky factor given."""
    real(self)
    if empty(self):
        return self
    return linalg.cholesky_inv(self, **({"upper": True} if upper else {}), stream=mx.cpu)


@op("aten.cholesky_solve.default")
def cholesky_solve(self: Expr, input2: Expr, upper: bool = False) -> Expr:
    """X of ``L @ L.T @ X = B``."""
    real(self, input2)
    if empty(self) or empty(input2):
        return mx.zeros(solution_shape(input2, self, True), dtype=self.dtype)
    return call(helper.cholesky_solve, self, input2, **({"upper": True} if upper else {}))


@op("aten.linalg_eigh.default")
def eigh(self: Expr, UPLO: str = "L") -> Any:  # noqa: N803
    """``mx.linalg.eigh``; eigenvectors are unique up to their signs."""
    if empty(self):
        return mx.zeros(self.shape[:-1]), self
    return linalg.eigh(self, **({} if UPLO.upper() == "L" else {"UPLO": "U"}), stream=mx.cpu)


@op("aten.linalg_eigvalsh.default")
def eigvalsh(self: Expr, UPLO: str = "L") -> Expr:  # noqa: N803
    """``mx.linalg.eigvalsh``."""
    if empty(self):
        return mx.zeros(self.shape[:-1])
    return linalg.eigvalsh(self, **({} if UPLO.upper() == "L" else {"UPLO": "U"}), stream=mx.cpu)


@op("aten._linalg_eigh.default")
def eigh_or_values(A: Expr, UPLO: str = "L", compute_v: bool = True) -> Any:  # noqa: N803
    """``linalg.eigh``, or the eigenvalues alone and no vectors."""
    return eigh(A, UPLO) if compute_v else (eigvalsh(A, UPLO), mx.zeros(0, dtype=A.dtype))


@op("aten.linalg_eig.default")
def eig(self: Expr) -> Any:
    """``mx.linalg.eig``."""
    if empty(self):
        return mx.zeros(self.shape[:-1], dtype=mx.complex64), self.astype(mx.complex64)
    return linalg.eig(self, stream=mx.cpu)


@op("aten.linalg_eigvals.default", "aten._linalg_eigvals.default")
def eigvals(self: Expr) -> Expr:
    """``mx.linalg.eigvals``."""
    if empty(self):
        return mx.zeros(self.shape[:-1], dtype=mx.complex64)
    return linalg.eigvals(self, stream=mx.cpu)


@op("aten.linalg_svdvals.default")
def svdvals(A: Expr, driver: str | None = None) -> Expr:  # noqa: N803
    """Singular values; ``driver`` names a method of CUDA."""
    if empty(A):
        return mx.zeros((*A.shape[:-2], min(A.shape[-2:])))
    return linalg.svd(A, compute_uv=False, stream=mx.cpu)


@op("aten.linalg_svd.default")
def svd(A: Expr, full_matrices: bool = True, driver: str | None = None) -> Any:  # noqa: N803
    """``mx.linalg.svd``; singular vectors are unique up to their signs."""
    rows, columns = A.shape[-2:]
    if empty(A):
        return call(helper.empty_svd, A, **({} if full_matrices else {"full_matrices": False}))
    if full_matrices or (isinstance(rows, int) and isinstance(columns, int) and rows == columns):
        return linalg.svd(A, stream=mx.cpu)
    return call(helper.reduced_svd, A)


@op("aten._linalg_svd.default")
def svd_or_values(A: Expr, full_matrices: bool = False, compute_uv: bool = True, driver: str | None = None) -> Any:  # noqa: N803
    """``linalg.svd``, or the singular values alone and no vectors."""
    if compute_uv:
        return svd(A, full_matrices)
    none = mx.zeros(0, dtype=A.dtype)
    return none, svdvals(A), none


@op("aten.linalg_qr.default")
def qr(A: Expr, mode: str = "reduced") -> Any:  # noqa: N803
    """``mx.linalg.qr``; columns of Q are unique up to their signs, which are LAPACK's in both."""
    real(A)
    if empty(A):
        return call(helper.empty_qr, A, mode)
    if mode == "r":
        return mx.zeros(0, dtype=A.dtype), linalg.qr(A, stream=mx.cpu)[1]
    if mode == "complete":
        return call(helper.complete_qr, A)
    return linalg.qr(A, stream=mx.cpu)


@op("aten.linalg_pinv.atol_rtol_tensor")
def pinv(self: Expr, atol: Expr | None = None, rtol: Expr | None = None, hermitian: bool = False) -> Expr:
    """The pseudo-inverse: singular values up to ``max(atol, rtol * largest)`` count as 0."""
    real(self)
    if empty(self):
        return self.swapaxes(-1, -2)
    options: dict[str, Any] = {"atol": atol, "rtol": rtol}
    matrix = call(helper.symmetric, self) if hermitian else self
    return call(helper.pinv, matrix, **{name: value for name, value in options.items() if value is not None})


@op("aten.linalg_lstsq.default")
def lstsq(self: Expr, b: Expr, rcond: float | None = None, driver: str | None = None) -> Any:
    """Least squares by the pseudo-inverse, whatever the driver; singular values are given for gelsd and gelss only."""
    real(self, b)
    refuse(empty(self) or empty(b), "least squares without equations")
    options: dict[str, Any] = {} if rcond is None else {"rcond": rcond}
    result = call(helper.lstsq, self, b, **options)
    none = mx.zeros(0)
    rank = mx.zeros(0, dtype=mx.int64) if driver == "gels" else call(helper.rank, self, **options)
    values = svdvals(self) if driver in ("gelsd", "gelss") else none
    rows, columns = self.shape[-2:]
    given = driver not in (None, "gelsy") and bool(rows > columns)
    residuals = call(helper.squared_residuals, self, b, result) if given else none
    return result, residuals, rank, values


@op("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")
def matrix_exp(self: Expr) -> Expr:
    """Scaling and squaring with a Taylor polynomial."""
    return self if empty(self) else call(helper.matrix_exp, self if is_complex(self) else accurate(self))


@op("aten.linalg_vector_norm.default")
def vector_norm(self: Expr, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Expr:  # noqa: A002
    """``mx.linalg.norm`` of one axis; 2-norms of all axes too."""
    x = self if dtype is None else cast(self, dtype)
    x = accurate(x)
    options = reduced(x, dim, keepdim)
    count = 1 if isinstance(options.get("axis"), int) else len(options.get("axis", range(x.ndim)))
    if count == 0:
        return (x != 0).astype(mx.float32) if ord == 0 else mx.abs(x)
    if ord == 2 and ("axis" not in options or count <= 2):
        return linalg.norm(x, **options)
    if count > 1 or empty(x):  # MLX would take a norm of matrices
        return call(helper.vector_norm, x, int(ord) if ord in (0, 1) else ord, **options)
    return linalg.norm(x, ord=int(ord) if ord in (0, 1) else ord, **options)
