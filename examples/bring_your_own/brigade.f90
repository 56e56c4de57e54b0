! SPDX-License-Identifier: Apache-2.0
! What a Fortran program needs of include/brigade/reducer.h and comm.h.
! Indices of parameters and buckets count from 0, as in C.
module brigade
  use, intrinsic :: iso_c_binding
  implicit none

  integer(c_int), parameter :: BRG_OK = 0
  integer(c_int), parameter :: BRG_DTYPE_F64 = 0, BRG_DTYPE_F32 = 1

  type, bind(C) :: brg_device
    integer(c_int16_t) :: kind = 0, index = 0 ! the CPU
  end type

  type, bind(C) :: brg_reducer_param
    type(c_ptr) :: name = c_null_ptr
    type(c_ptr) :: grad = c_null_ptr
    integer(c_size_t) :: count = 0
    integer(c_int) :: dtype = BRG_DTYPE_F64
    type(brg_device) :: device
    integer(c_size_t) :: n_rows = 0
  end type

  interface
    integer(c_int) function brg_pg_create(pg, backend, options) bind(C)
      import
      type(c_ptr), intent(out) :: pg
      character(kind=c_char), intent(in) :: backend(*)
      type(c_ptr), value :: options
    end function

    subroutine brg_pg_destroy(pg) bind(C)
      import
      type(c_ptr), value :: pg
    end subroutine

    integer(c_int) function brg_pg_rank(pg) bind(C)
      import
      type(c_ptr), value :: pg
    end function

    integer(c_int) function brg_pg_world_size(pg) bind(C)
      import
      type(c_ptr), value :: pg
    end function

    integer(c_int) function brg_reducer_create(reducer, pg, params, n_params, &
                                               options) bind(C)
      import
      type(c_ptr), intent(out) :: reducer
      type(c_ptr), value :: pg
      type(brg_reducer_param), intent(in) :: params(*)
      integer(c_size_t), value :: n_params
      type(c_ptr), value :: options
    end function

    subroutine brg_reducer_destroy(reducer) bind(C)
      import
      type(c_ptr), value :: reducer
    end subroutine

    integer(c_int) function brg_reducer_mark_ready(reducer, i) bind(C)
      import
      type(c_ptr), value :: reducer
      integer(c_size_t), value :: i
    end function

    ! On a GPU: behind a cudaEvent_t of a stream of your own.
    integer(c_int) function brg_reducer_mark_ready_after(reducer, i, event) &
        bind(C)
      import
      type(c_ptr), value :: reducer, event
      integer(c_size_t), value :: i
    end function

    ! For the thread that waits, while others (OpenMP) compute and mark.
    integer(c_int) function brg_reducer_poll(reducer) bind(C)
      import
      type(c_ptr), value :: reducer
    end function

    integer(c_int) function brg_reducer_set_grad(reducer, i, grad) bind(C)
      import
      type(c_ptr), value :: reducer, grad
      integer(c_size_t), value :: i
    end function

    integer(c_int) function brg_reducer_wait(reducer) bind(C)
      import
      type(c_ptr), value :: reducer
    end function

    integer(c_int) function brg_reducer_cancel(reducer) bind(C)
      import
      type(c_ptr), value :: reducer
    end function

    type(c_ptr) function brg_error_message() bind(C)
      import
    end function
  end interface

contains

  ! Ends the program with the library's message unless the call succeeded.
  subroutine must(status)
    integer(c_int), intent(in) :: status
    character(kind=c_char), pointer :: text(:)
    type(c_ptr) :: message
    integer :: i
    if (status == BRG_OK) return
    message = brg_error_message()
    call c_f_pointer(message, text, [512])
    do i = 1, size(text)
      if (text(i) == c_null_char) exit
      write (0, '(a)', advance='no') text(i)
    end do
    write (0, *)
    stop 1
  end subroutine
end module
