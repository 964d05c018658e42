// Refusing a second thread in an object.
#pragma once

#include <atomic>
#include <stdexcept>

#include "../runtime/thread_pool.hpp"
#include "scalars.hpp"

namespace fastopt {

// 0, or 1 + the number of forks of the process when a call began.
using User = std::atomic<unsigned>;

// Lives while a thread is inside. Throws RuntimeError if another one is.
class SingleUse {
public:
    // `owner`: what messages call the object.
    SingleUse(User& user, const char* owner) : user_(user) {
        unsigned found = 0;
        if (user.compare_exchange_strong(found, 1 + fork_count())) return;
        if (found == 1 + fork_count())
            throw_error<std::runtime_error>(
                "this {} is in use by another thread; one step at a time", owner);
        throw_error<std::runtime_error>(
            "the process was forked while another thread used this {}, whose arrays may be half "
            "written; make a new one",
            owner);
    }
    ~SingleUse() { user_.store(0); }
    SingleUse(const SingleUse&) = delete;
    SingleUse& operator=(const SingleUse&) = delete;

private:
    User& user_;
};

}  // namespace fastopt
