// From exceptions to m4j_error: nothing thrown leaves the library.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>

#include "mamba4j.h"
#include "runtime/failure.h"

namespace m4j {

// Fills *err, which may be null, without allocating; returns code.
m4j_status report(m4j_error* err, m4j_status code, const char* message) noexcept;

template <typename Body>
m4j_status guarded(m4j_error* err, Body&& body) noexcept {
  try {
    body();
    return M4J_OK;
  } catch (const Failure& e) {
    return report(err, e.code, e.message);
  } catch (const std::bad_alloc&) {
    return report(err, M4J_ERR_OUT_OF_MEMORY, "out of memory: the system refused an allocation");
  } catch (const std::length_error&) {  // of a vector
    return report(err, M4J_ERR_OUT_OF_MEMORY, "out of memory: more was asked for than can be addressed");
  } catch (const std::system_error& e) {  // threads, locks
    return report(err, M4J_ERR_OUT_OF_MEMORY, e.what());
  } catch (const std::exception& e) {
    return report(err, M4J_ERR_INTERNAL, e.what());
  } catch (...) {
    return report(err, M4J_ERR_INTERNAL, "an unknown exception inside the library");
  }
}

}  // namespace m4j
