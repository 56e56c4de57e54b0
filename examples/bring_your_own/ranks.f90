! SPDX-License-Identifier: Apache-2.0
! The trainer of alone.c in Fortran, on many ranks.
program ranks
  use brigade
  implicit none
  integer, parameter :: n_in = 2, n_hidden = 32, batch = 48, n_steps = 300
  real(c_double), parameter :: rate = 0.3d0
  real(c_double), target :: dw1(n_hidden, n_in), db1(n_hidden), &
                            dw2(n_hidden), db2(1)
  real(c_double) :: w1(n_hidden, n_in), b1(n_hidden), w2(n_hidden), b2(1)
  real(c_double) :: x(n_in, batch), h(n_hidden, batch), error(batch), result
  type(brg_reducer_param) :: list(0:3)
  type(c_ptr) :: pg, reducer
  integer :: i, k, step, n, first

  w1 = reshape([(sin(9.7d0 * k), k = 0, n_in * n_hidden - 1)], shape(w1))
  w2 = [(sin(9.7d0 * k + 2), k = 0, n_hidden - 1)]
  b1 = 0
  b2 = 0
  list(0) = brg_reducer_param(grad=c_loc(dw1), count=size(dw1))
  list(1) = brg_reducer_param(grad=c_loc(db1), count=size(db1))
  list(2) = brg_reducer_param(grad=c_loc(dw2), count=size(dw2))
  list(3) = brg_reducer_param(grad=c_loc(db2), count=size(db2))
  call must(brg_pg_create(pg, 'auto' // c_null_char, c_null_ptr))
  call must(brg_reducer_create(reducer, pg, list, 4_c_size_t, c_null_ptr))
  n = batch / brg_pg_world_size(pg)
  first = n * brg_pg_rank(pg)

  do step = 0, n_steps - 1
    call forward(step, first, n)
    call backward(n)
    call must(brg_reducer_wait(reducer)) ! now the average over ranks
    w1 = w1 - rate * dw1
    b1 = b1 - rate * db1
    w2 = w2 - rate * dw2
    b2 = b2 - rate * db2
  end do
  call forward(n_steps, 0, batch)
  result = sum(error**2) / batch
  if (first == 0) then
    write (*, '(a, f12.10, a, f13.10)') 'error ', result, ', w1[0] ', w1(1, 1)
  end if
  call brg_reducer_destroy(reducer)
  call brg_pg_destroy(pg)

contains

  subroutine forward(at, from, count)
    integer, intent(in) :: at, from, count
    do i = 1, count
      x(1, i) = sin(1.3d0 * at + 0.7d0 * (from + i - 1))
      x(2, i) = cos(2.1d0 * at + 0.4d0 * (from + i - 1))
      h(:, i) = tanh(b1 + matmul(w1, x(:, i)))
      error(i) = b2(1) + dot_product(h(:, i), w2) - x(1, i) * x(2, i)
    end do
  end subroutine

  ! The last layer first; each gradient is marked once it is complete.
  subroutine backward(count)
    integer, intent(in) :: count
    real(c_double) :: d(n_hidden)
    dw1 = 0
    db1 = 0
    dw2 = matmul(h(:, 1:count), error(1:count)) / count
    db2 = sum(error(1:count)) / count
    call must(brg_reducer_mark_ready(reducer, 2_c_size_t))
    call must(brg_reducer_mark_ready(reducer, 3_c_size_t))
    do i = 1, count
      d = error(i) * w2 * (1 - h(:, i)**2) / count
      db1 = db1 + d
      do k = 1, n_in
        dw1(:, k) = dw1(:, k) + d * x(k, i)
      end do
    end do
    call must(brg_reducer_mark_ready(reducer, 0_c_size_t))
    call must(brg_reducer_mark_ready(reducer, 1_c_size_t))
  end subroutine
end program
