"""A softmax that goes along with the tokens, in the registers of each team, and the teams' results in one."""

from typing import Any, NamedTuple

from numba import float32, uint64

from pqkv.kernels.cuda.device import LOWEST, device_function, power_of_two


class Teams(NamedTuple):
    """Shared memory: maximum and sum of each [team][head], mixed values of each [team][head][element]."""

    maxima: Any
    sums: Any
    mixed: Any


def weigh(variant):
    """weigh(score, best, mass, acc): scores of a team's tokens become weights relative to the largest so far, and what
    was added up before is brought down to it.
    """
    GROUP, TOKENS, OWN = variant.group, variant.tokens, variant.own

    @device_function
    def weigh(score, best, mass, acc):
        for g in range(GROUP):
            top = best[g]
            for u in range(TOKENS):
                top = max(top, score[u * GROUP + g])
            shrink = power_of_two(best[g] - top)
            best[g] = top
            mass[g] *= shrink
            for e in range(OWN):
                acc[g * OWN + e] *= shrink
            for u in range(TOKENS):
                weight = power_of_two(score[u * GROUP + g] - top)
                score[u * GROUP + g] = weight
                mass[g] += weight

    return weigh


def leave_team(variant):
    """leave(lane, best, mass, acc, teams): a team's results into shared memory."""
    D, GROUP, LOADS, VECTOR, LANES, OWN = (
        variant.head_dim, variant.group, variant.loads, variant.vector, variant.lanes, variant.own,
    )  # fmt: skip

    @device_function
    def leave(lane, best, mass, acc, teams):
        for g in range(GROUP):
            if lane.lane == 0:
                teams.maxima[lane.team * GROUP + g] = best[g]
                teams.sums[lane.team * GROUP + g] = mass[g]
            for i in range(LOADS):
                for e in range(VECTOR):
                    at = (lane.team * GROUP + g) * D + (i * LANES + lane.lane) * VECTOR + e
                    teams.mixed[at] = acc[g * OWN + i * VECTOR + e]

    return leave


def merge_teams(variant):
    """merge(teams, partial, thread): values, maximum and sum of each head to `partial`."""
    D, GROUP, BLOCK, TEAMS = variant.head_dim, variant.group, variant.block, variant.teams

    @device_function
    def merge(teams, partial, thread):
        for index in range(thread, GROUP * D, BLOCK):
            g, e = index // D, index % D
            top = float32(LOWEST)
            for one in range(TEAMS):
                top = max(top, teams.maxima[one * GROUP + g])
            value, total = float32(0.0), float32(0.0)
            for one in range(TEAMS):
                factor = power_of_two(teams.maxima[one * GROUP + g] - top)
                total += factor * teams.sums[one * GROUP + g]
                value += factor * teams.mixed[(one * GROUP + g) * D + e]
            at = partial.at + g * partial.step
            partial.data[uint64(at + e)] = value
            if e == 0:
                partial.data[uint64(at + D)] = top
                partial.data[uint64(at + D + 1)] = total

    return merge
