#include "gateway/balancer.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace xgen::gateway {
namespace {

using namespace std::chrono_literals;
using Outcome = Balancer::Outcome;

const Time kStart = Time() + 1h;

std::vector<std::uint64_t> chunks(std::uint64_t conversation, std::size_t count) {
  std::vector<std::uint64_t> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(conversation * 1000003 + i);
  return out;
}

// Sends one request and ends it well.
std::string send(Balancer& balancer, const std::vector<std::uint64_t>& prompt, Time now = kStart) {
  auto pick = balancer.pick(prompt, {}, now);
  if (!pick) return "";
  balancer.answered(*pick, now);
  balancer.ended(*pick, Outcome::good, now);
  return pick->name;
}

TEST(Balancer, RequestsInFlightCount) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b", "c"});
  std::map<std::string, int> sent;
  for (int i = 0; i < 30; ++i) ++sent[balancer.pick({}, {}, kStart)->name];
  EXPECT_EQ(sent, (std::map<std::string, int>{{"a", 10}, {"b", 10}, {"c", 10}}));
  for (int i = 0; i < 5; ++i) balancer.ended({"b"}, Outcome::good, kStart);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(balancer.pick({}, {}, kStart)->name, "b");
}

TEST(Balancer, AConversationGoesWhereItsBeginningIs) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b", "c"});
  std::map<std::uint64_t, std::string> homes;
  std::map<std::string, int> share;
  for (std::uint64_t c = 0; c < 30; ++c) ++share[homes[c] = send(balancer, chunks(c, 4))];
  EXPECT_EQ(share.size(), 3u);
  for (const auto& [name, count] : share) EXPECT_EQ(count, 10) << name;
  for (std::size_t turn = 5; turn < 9; ++turn)
    for (std::uint64_t c = 0; c < 30; ++c) EXPECT_EQ(send(balancer, chunks(c, turn)), homes[c]) << c << " " << turn;
}

TEST(Balancer, AffinityGivesWayToLoad) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  const auto prompt = chunks(1, 10);
  const std::string home = send(balancer, prompt);
  std::map<std::string, int> sent;
  for (int i = 0; i < 40; ++i) ++sent[balancer.pick(prompt, {}, kStart)->name];  // none of them ends
  const std::string other = home == "a" ? "b" : "a";
  EXPECT_GE(sent[home], sent[other]);
  EXPECT_GE(sent[other], 10) << "the replica with the prefix must not take everything";
}

TEST(Balancer, RoundRobinKnowsNoLoadAndLeastLoadedNoPrefix) {
  Balancer round({.policy = Policy::round_robin});
  round.set_replicas({"a", "b", "c"});
  std::map<std::string, int> sent;
  for (int i = 0; i < 9; ++i) ++sent[send(round, chunks(1, 5))];
  EXPECT_EQ(sent, (std::map<std::string, int>{{"a", 3}, {"b", 3}, {"c", 3}}));
  Balancer least({.policy = Policy::least_loaded});
  least.set_replicas({"a", "b"});
  sent.clear();
  for (int i = 0; i < 10; ++i) ++sent[send(least, chunks(1, 5))];
  EXPECT_EQ(sent["a"], 5);
}

TEST(Balancer, OtherClientsLoadCounts) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  balancer.checked("a", inference::Load{4, 6, 0});
  balancer.checked("b", inference::Load{0, 0, 0});
  for (int i = 0; i < 8; ++i) EXPECT_EQ(balancer.pick({}, {}, kStart)->name, "b");
  // What was sent from here is not counted twice, and not once it has ended either.
  balancer.checked("b", inference::Load{8, 0, 0, 8});
  balancer.checked("a", inference::Load{0, 0, 0});
  for (int i = 0; i < 8; ++i) EXPECT_EQ(balancer.pick({}, {}, kStart)->name, "a");
  EXPECT_NE(balancer.pick({}, {}, kStart)->name, balancer.pick({}, {}, kStart)->name);
}

TEST(Balancer, WhatHasEndedSinceTheReportIsNoOtherClients) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  const auto prompt = chunks(1, 2);
  const std::string first = send(balancer, prompt);
  balancer.checked(first, inference::Load{9, 0, 0, 9});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(send(balancer, prompt), first);
}

TEST(Balancer, TriedReplicasAreLeftOut) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  EXPECT_EQ(balancer.pick({}, {"a"}, kStart)->name, "b");
  EXPECT_FALSE(balancer.pick({}, {"a", "b"}, kStart).has_value());
}

TEST(Balancer, WhatDoesNotAnswerItsHealthCheckGetsNothing) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  balancer.checked("a", std::nullopt);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(send(balancer, {}), "b");
  balancer.checked("b", std::nullopt);
  EXPECT_EQ(send(balancer, {}), "");
  EXPECT_FALSE(balancer.next_chance(kStart).has_value());
  balancer.checked("a", inference::Load{});
  EXPECT_EQ(send(balancer, {}), "a");
}

// Sends a request to this replica, whatever the others have to do.
Balancer::Pick send_to(Balancer& balancer, const std::string& name, Time now = kStart) {
  std::set<std::string> others;
  for (const auto& each : balancer.states(now))
    if (each.name != name) others.insert(each.name);
  const auto pick = balancer.pick({}, others, now);
  EXPECT_TRUE(pick.has_value()) << name;
  return pick.value_or(Balancer::Pick{});
}
// One that ends like this.
void end_at(Balancer& balancer, const std::string& name, Outcome outcome, Time now = kStart) {
  balancer.ended(send_to(balancer, name, now), outcome, now);
}
void open_circuit(Balancer& balancer, const std::string& name, Time now = kStart) {
  for (int i = 0; i < BalancerOptions().max_failures; ++i) end_at(balancer, name, Outcome::failed, now);
}
// The names of those that hold requests off.
std::string open_at(const Balancer& balancer, Time now = kStart) {
  std::string open;
  for (const auto& state : balancer.states(now))
    if (state.open) open += state.name;
  return open;
}

TEST(Balancer, FailuresInARowOpenTheCircuitAndOneProbeClosesIt) {
  Balancer balancer({.max_failures = 3, .open_time = 1s, .max_open_time = 3s});
  balancer.set_replicas({"a"});
  Time now = kStart;
  for (int i = 0; i < 3; ++i) end_at(balancer, "a", Outcome::failed, now);
  EXPECT_FALSE(balancer.pick({}, {}, now).has_value());
  EXPECT_EQ(balancer.next_chance(now), now + 1s);
  EXPECT_TRUE(balancer.states(now)[0].open);
  // A failed probe opens it for twice as long, up to the limit.
  for (const auto wait : {1s, 2s, 3s, 3s}) {
    now += wait - 1ms;
    EXPECT_FALSE(balancer.pick({}, {}, now).has_value());
    now += 1ms;
    const auto probe = balancer.pick({}, {}, now);
    ASSERT_TRUE(probe.has_value());
    EXPECT_FALSE(balancer.pick({}, {}, now).has_value()) << "one probe at a time";
    balancer.ended(*probe, Outcome::failed, now);
  }
  now += 3s;
  end_at(balancer, "a", Outcome::cancelled, now);  // says nothing
  end_at(balancer, "a", Outcome::neutral, now);
  EXPECT_EQ(send(balancer, {}, now), "a");
  EXPECT_FALSE(balancer.states(now)[0].open);
  EXPECT_TRUE(balancer.pick({}, {}, now).has_value());
  EXPECT_TRUE(balancer.pick({}, {}, now).has_value());
  EXPECT_EQ(balancer.states(now)[0].ejections, 5u);
}

// The rest of its answer may take minutes.
TEST(Balancer, TheProbesFirstTokenClosesTheCircuit) {
  Balancer balancer({});
  balancer.set_replicas({"a"});
  open_circuit(balancer, "a");
  const Time now = kStart + 1s;
  EXPECT_EQ(open_at(balancer, now), "") << "the next request may try";
  auto probe = balancer.pick({}, {}, now);
  ASSERT_TRUE(probe.has_value());
  EXPECT_EQ(open_at(balancer, now), "a") << "others may not while the probe has no token";
  balancer.answered(*probe, now);
  EXPECT_EQ(open_at(balancer, now), "");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(send(balancer, {}, now), "a");
  balancer.ended(*probe, Outcome::failed, now);
  EXPECT_EQ(open_at(balancer, now), "") << "one failure like any other";
}

TEST(Balancer, WhatWasSentBeforeACircuitOpenedSaysNothingOfIt) {
  Balancer balancer({});
  balancer.set_replicas({"a"});
  std::vector<Balancer::Pick> old;
  for (int i = 0; i < 40; ++i) {
    old.push_back(send_to(balancer, "a"));
    if (i % 2 == 0) balancer.answered(old.back(), kStart);
  }
  open_circuit(balancer, "a");
  const Time now = kStart + 1s;
  const auto probe = balancer.pick({}, {}, now);
  ASSERT_TRUE(probe.has_value());
  const auto end_some = [&](Outcome outcome) {
    for (int i = 0; i < 12; ++i, old.pop_back()) balancer.ended(old.back(), outcome, now);
    EXPECT_FALSE(balancer.pick({}, {}, now).has_value()) << "the probe is under way";
    EXPECT_EQ(balancer.states(now)[0].ejections, 1u);
  };
  end_some(Outcome::neutral);
  end_some(Outcome::failed);
  end_some(Outcome::good);
  balancer.ended(*probe, Outcome::failed, now);
  EXPECT_EQ(balancer.next_chance(now), now + 2s);
  // Once the circuit is closed, it is as if it had never failed.
  EXPECT_EQ(send(balancer, {}, now + 2s), "a");
  end_at(balancer, "a", Outcome::failed, now + 2s);
  EXPECT_EQ(open_at(balancer, now + 2s), "");
}

TEST(Balancer, AnOutlierIsEjectedUnlessAllAreAlike) {
  const auto run = [](bool all_fail) {
    Balancer balancer({.policy = Policy::round_robin, .max_failures = 1000});
    balancer.set_replicas({"a", "b", "c"});
    std::map<std::string, int> count;
    for (int i = 0; i < 90; ++i) {
      const auto pick = balancer.pick({}, {}, kStart);
      if (!pick) return std::string("none");
      // Two of three fail, never all in a row.
      const bool fails = (all_fail || pick->name == "b") && ++count[pick->name] % 3 != 0;
      balancer.ended(*pick, fails ? Outcome::failed : Outcome::good, kStart);
    }
    return open_at(balancer);
  };
  EXPECT_EQ(run(false), "b");
  EXPECT_EQ(run(true), "");
}

TEST(Balancer, AFaultThatMayBeTheRequestsOpensACircuitOnlyWhileOthersDoWell) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b", "c"});
  // A prompt that fails everywhere.
  for (int i = 0; i < 50; ++i)
    for (const char* name : {"a", "b", "c"}) end_at(balancer, name, Outcome::doubtful);
  EXPECT_EQ(open_at(balancer), "");
  // One that goes to two of them only leaves the third.
  Time now = kStart + 1min;
  for (const char* name : {"a", "b", "c"}) end_at(balancer, name, Outcome::good, now);
  for (int i = 0; i < 5; ++i)
    for (const char* name : {"a", "b"}) end_at(balancer, name, Outcome::doubtful, now);
  EXPECT_EQ(open_at(balancer, now), "ab");
  for (int i = 0; i < 50; ++i) end_at(balancer, "c", Outcome::doubtful, now);
  EXPECT_EQ(open_at(balancer, now), "ab");
  // Nor does it count against probes: the next one may try at once.
  now += 1s;
  for (int i = 0; i < 10; ++i) end_at(balancer, "a", Outcome::doubtful, now);
  EXPECT_EQ(open_at(balancer, now), "");
  now += 1min;
  end_at(balancer, "c", Outcome::good, now);
  end_at(balancer, "a", Outcome::doubtful, now);
  EXPECT_EQ(open_at(balancer, now), "a") << "c does well by now";
}

TEST(Balancer, AReplicaThatAnswersNobodyHangs) {
  for (const Outcome outcome : {Outcome::timed_out, Outcome::cancelled}) {
    Balancer balancer({});
    balancer.set_replicas({"a", "b"});
    send(balancer, {});
    send(balancer, {});
    std::vector<Balancer::Pick> stuck;
    for (int i = 0; i < 5; ++i) stuck.push_back(send_to(balancer, "a", kStart + 1s));
    for (const auto& each : stuck) EXPECT_TRUE(balancer.ended(each, outcome, kStart + 11s));
    EXPECT_EQ(open_at(balancer, kStart + 11s), "a");
    // The last one is kept.
    for (int i = 0; i < 20; ++i) balancer.ended(send_to(balancer, "b", kStart + 11s), outcome, kStart + 21s);
    EXPECT_EQ(balancer.states(kStart + 21s)[1].ejections, 0u);
  }
}

TEST(Balancer, WhatIsGivenUpInALongQueueIsNoFault) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  const auto give_up = [&](std::vector<Balancer::Pick>& picks, Time now) {
    for (const auto& each : picks) {
      EXPECT_FALSE(balancer.ended(each, Outcome::timed_out, now));
      EXPECT_FALSE(balancer.ended(each, Outcome::cancelled, now));
    }
  };
  const auto queue = [&](Time now) {
    std::vector<Balancer::Pick> picks;
    for (int i = 0; i < 10; ++i) picks.push_back(send_to(balancer, "a", now));
    return picks;
  };
  // An answer is being written while they wait, and when it has ended another begins.
  auto first = send_to(balancer, "a");
  balancer.answered(first, kStart);
  auto picks = queue(kStart + 1s);
  give_up(picks, kStart + 31s);
  picks = queue(kStart + 31s);
  balancer.ended(first, Outcome::good, kStart + 32s);
  auto second = send_to(balancer, "a", kStart + 32s);
  balancer.answered(second, kStart + 33s);
  balancer.ended(second, Outcome::good, kStart + 33s);
  give_up(picks, kStart + 60s);
  // A client that leaves at once says nothing either, nor does one that had its first token.
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(balancer.ended(send_to(balancer, "a", kStart + 60s), Outcome::cancelled, kStart + 69s));
    auto begun = send_to(balancer, "a", kStart + 70s);
    balancer.answered(begun, kStart + 70s);
    EXPECT_FALSE(balancer.ended(begun, Outcome::timed_out, kStart + 90s));
  }
  EXPECT_EQ(balancer.states(kStart + 90s)[0].failures, 0u);
}

TEST(Balancer, AnAnswerThatEndedMeanwhileIsASignOfLife) {
  for (const Outcome how : {Outcome::good, Outcome::cancelled}) {
    Balancer balancer({});
    balancer.set_replicas({"a", "b"});
    auto first = send_to(balancer, "a");
    balancer.answered(first, kStart);
    std::vector<Balancer::Pick> queued;
    for (int i = 0; i < 10; ++i) queued.push_back(send_to(balancer, "a", kStart + 1s));
    balancer.ended(first, how, kStart + 31s);
    for (const auto& each : queued) EXPECT_FALSE(balancer.ended(each, Outcome::cancelled, kStart + 31s));
    EXPECT_EQ(balancer.states(kStart + 31s)[0].failures, 0u);
  }
}

TEST(Balancer, DoubtfulFaultsNeverTakeOutTheLastReplica) {
  Balancer balancer({});
  balancer.set_replicas({"a"});
  for (int i = 0; i < 10; ++i) balancer.ended(send_to(balancer, "a"), Outcome::doubtful, kStart);
  for (int i = 0; i < 4; ++i) balancer.ended(send_to(balancer, "a"), Outcome::failed, kStart);
  EXPECT_FALSE(balancer.states(kStart)[0].open);
  balancer.ended(send_to(balancer, "a"), Outcome::failed, kStart);
  EXPECT_TRUE(balancer.states(kStart)[0].open);
}

TEST(Balancer, AFullReplicaRestsWhileOthersCan) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  balancer.rest("a", kStart + 2s);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(balancer.pick({}, {}, kStart)->name, "b");
  EXPECT_EQ(balancer.pick({}, {"b"}, kStart)->name, "a") << "better than none";
  EXPECT_EQ(balancer.pick({}, {}, kStart + 2s)->name, "a");
}

TEST(Balancer, ReplicasThatStayKeepWhatIsKnownOfThem) {
  Balancer balancer({});
  balancer.set_replicas({"a", "b"});
  const auto prompt = chunks(7, 20);
  const std::string home = send(balancer, prompt);
  balancer.set_replicas({home, "c", "d", "c"});
  EXPECT_EQ(balancer.states(kStart).size(), 3u);
  EXPECT_EQ(send(balancer, prompt), home);
  balancer.ended({"gone", 3}, Outcome::failed, kStart);  // a request of one that has left
  balancer.set_replicas({});
  EXPECT_FALSE(balancer.pick({}, {}, kStart).has_value());
}

// Replicas with an LRU prefix cache of their own, conversations that come back turn after turn.
struct Simulated {
  double cached_share = 0;
  double worst_queue = 0;  // 99th percentile of the work in front of a request
};
Simulated simulate(Policy policy) {
  constexpr int kConversations = 300, kActive = 60, kTurns = 12, kGrowth = 6;
  BalancerOptions options;
  options.policy = policy;
  Balancer balancer(options);
  balancer.set_replicas({"a", "b", "c"});
  // All of them together hold 40% of what the active conversations have come to on average.
  const std::size_t capacity = kActive * kTurns / 2 * kGrowth * 4 / 10 / 3;
  std::map<std::string, PrefixIndex> caches;
  for (const char* name : {"a", "b", "c"}) {
    caches.emplace(name, PrefixIndex(capacity));
    balancer.checked(name, inference::Load{0, 0, static_cast<double>(capacity * kChunkBytes) / 4});
  }
  std::mt19937 random(1);
  std::vector<int> turn(kConversations, 0);
  std::vector<std::uint64_t> active;
  std::uint64_t opened = 0;
  struct Running {
    Balancer::Pick pick;
    double done;
  };
  std::vector<Running> running;
  std::map<std::string, double> busy_until;
  std::vector<double> queues;
  double total = 0, cached = 0, now = 0;
  const auto open_more = [&] {
    while (active.size() < kActive && opened < kConversations) active.push_back(opened++);
  };
  for (open_more(); !active.empty(); open_more()) {
    now += std::exponential_distribution<double>(0.12)(random);
    std::erase_if(running, [&](Running& each) {
      if (each.done > now) return false;
      balancer.answered(each.pick, kStart);
      balancer.ended(each.pick, Outcome::good, kStart);
      return true;
    });
    const std::size_t which = std::uniform_int_distribution<std::size_t>(0, active.size() - 1)(random);
    const std::uint64_t conversation = active[which];
    const int this_turn = ++turn[conversation];
    if (this_turn == kTurns) active.erase(active.begin() + static_cast<std::ptrdiff_t>(which));
    const auto prompt = chunks(conversation, static_cast<std::size_t>(this_turn * kGrowth));
    const auto pick = balancer.pick(prompt, {}, kStart);
    PrefixIndex& cache = caches.at(pick->name);
    const std::size_t hit = cache.match(prompt);
    cache.add(prompt);
    total += static_cast<double>(prompt.size());
    cached += static_cast<double>(hit);
    double& busy = busy_until[pick->name];
    queues.push_back(std::max(0.0, busy - now));
    busy = std::max(busy, now) + static_cast<double>(prompt.size() - hit) * 0.5 + 1;
    running.push_back({*pick, busy});
  }
  std::sort(queues.begin(), queues.end());
  return {cached / total, queues[queues.size() * 99 / 100]};
}

TEST(Balancer, PrefixAffinityFindsMoreInTheCachesAtNoMoreWaiting) {
  const Simulated prefix = simulate(Policy::prefix), round = simulate(Policy::round_robin);
  RecordProperty("prefix", std::to_string(prefix.cached_share));
  RecordProperty("round_robin", std::to_string(round.cached_share));
  EXPECT_GE(prefix.cached_share, 1.5 * round.cached_share) << prefix.cached_share << " " << round.cached_share;
  EXPECT_LE(prefix.worst_queue, round.worst_queue);
}

TEST(PrefixIndex, FindsTheLongestBeginningAndForgetsTheEndsFirst) {
  PrefixIndex index(10);
  index.add(chunks(1, 8));
  EXPECT_EQ(index.match(chunks(1, 20)), 8u);
  EXPECT_EQ(index.match(chunks(2, 3)), 0u);
  EXPECT_EQ(index.match({}), 0u);
  index.add(chunks(2, 5));  // three of the first go
  EXPECT_EQ(index.size(), 10u);
  EXPECT_EQ(index.match(chunks(1, 8)), 5u);
  EXPECT_EQ(index.match(chunks(2, 5)), 5u);
  index.set_capacity(4);
  EXPECT_EQ(index.match(chunks(1, 8)), 0u);
  EXPECT_EQ(index.match(chunks(2, 5)), 4u);
}

inference::GenerateRequest chat(std::vector<inference::Message> messages) {
  inference::GenerateRequest request;
  request.prompt = std::move(messages);
  return request;
}
std::size_t common(const inference::GenerateRequest& a, const inference::GenerateRequest& b) {
  const auto x = chunk_hashes(a), y = chunk_hashes(b);
  std::size_t i = 0;
  while (i < x.size() && i < y.size() && x[i] == y[i]) ++i;
  return i;
}

TEST(ChunkHashes, EqualWhereThePromptsAre) {
  const std::string system(1000, 's');
  const std::string question(600, 'q');
  const auto first = chat({{"system", system}, {"user", question}});
  const auto second =
      chat({{"system", system}, {"user", question}, {"assistant", std::string(300, 'a')}, {"user", "b"}});
  EXPECT_EQ(common(first, second), chunk_hashes(first).size());
  EXPECT_GT(chunk_hashes(second).size(), chunk_hashes(first).size());
  EXPECT_EQ(common(first, chat({{"system", system}, {"user", std::string(600, 'r')}})), 1000 / kChunkBytes);
  // The border between messages counts, and so does a role.
  EXPECT_EQ(common(chat({{"user", std::string(600, 'x')}}), chat({{"system", std::string(600, 'x')}})), 0u);
  EXPECT_LT(common(chat({{"user", system + question}}), chat({{"user", system}, {"user", question}})), 5u);
  auto salted = first;
  salted.extensions.push_back({"cache_salt", "\"mine\""});
  EXPECT_EQ(common(first, salted), 0u);
  auto tools = first;
  tools.tools.push_back({"f", "", "{}", {}});
  EXPECT_EQ(common(first, tools), 0u);
  inference::GenerateRequest text;
  text.prompt = std::string(kChunkBytes * 2 + 5, 't');
  EXPECT_EQ(chunk_hashes(text).size(), 2u);
  text.prompt = std::string(kChunkBytes * (kMaxChunks + 10), 't');
  EXPECT_EQ(chunk_hashes(text).size(), kMaxChunks);
  text.prompt = std::vector<inference::TokenId>(kChunkBytes, 5);
  EXPECT_EQ(chunk_hashes(text).size(), sizeof(inference::TokenId));
}

}  // namespace
}  // namespace xgen::gateway
